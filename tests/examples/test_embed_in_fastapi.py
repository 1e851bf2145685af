"""The example of a service of one's own, driven as its clients would."""

import time
from pathlib import Path

from fastapi.testclient import TestClient

from examples.embed_in_fastapi import app
from fairy.runtime.video import probe
from tests.runtime.conftest import make_frames, write_clip


def test_the_example_edits_cancels_and_refuses(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", make_frames()).read_bytes()
    with TestClient(app) as client:

        def ended(name: str) -> dict:
            while (said := client.get(f"/edits/{name}").json())["status"] == "running":
                time.sleep(0.05)
            return said

        name = client.post("/edits", params={"prompt": "make it sepia", "steps": 1}, content=clip).json()["id"]
        assert ended(name) == {"status": "done"}
        (tmp_path / "out.mp4").write_bytes(client.get(f"/edits/{name}/video").content)
        assert probe(tmp_path / "out.mp4").num_frames == 5
        name = client.post("/edits", params={"prompt": "make it sepia", "steps": 900}, content=clip).json()["id"]
        client.delete(f"/edits/{name}")
        assert "ancelled" in ended(name)["why"]
        assert client.get(f"/edits/{name}/video").status_code == 404
        name = client.post("/edits", params={"prompt": "x"}, content=b"no video").json()["id"]
        assert ended(name)["status"] == "failed"
        wrong = client.post("/edits", params={"prompt": "x", "steps": 0}, content=clip)
        assert wrong.status_code == 400
        assert "num_inference_steps" in wrong.json()["detail"]
