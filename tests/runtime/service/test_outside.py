"""What leaves the service: fetched sources and webhooks go to named public hosts alone, and webhooks are signed."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from openai import OpenAI

from fairy.kernels.errors import InputError
from fairy.runtime.service import outside, webhooks
from fairy.runtime.service.jobs import JobStore
from fairy.runtime.service.metrics import Metrics
from fairy.runtime.service.outside import Refused
from fairy.runtime.service.problems import Problem
from tests.runtime.service.test_jobs import a_job, put

SECRET_TEXT = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5"


class _Handler(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[dict[str, str], bytes]]] = []
    statuses: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        for _ in range(3):
            self.wfile.write(b"x" * 1000)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.statuses.pop(0) if self.statuses else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """A server of this machine, which stands for one outside."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_port}"
    server.shutdown()


def _fetch(site: str, path: str, target: Path, **limits: Any) -> int:
    values = {"max_bytes": 10_000, "limit_s": 10.0, "private": True, "free_bytes": lambda: 1 << 40} | limits
    return outside.fetch(f"http://{site}{path}", [site], target, **values)


def test_a_source_is_fetched_and_redirects_are_checked_again(site: str, tmp_path: Path) -> None:
    assert _fetch(site, "/clip.mp4", tmp_path / "a") == 3000
    assert (tmp_path / "a").read_bytes() == b"x" * 3000
    assert _fetch(site, f"/to/http://{site}/clip.mp4", tmp_path / "b") == 3000
    for path, why in (
        ("/to/http://127.0.0.1:1/x", "is not allowed"),
        ("/to/http://169.254.169.254/latest/meta-data", "is not allowed"),
        ("/to/file:///etc/passwd", "must be http"),
        ("/to/" * 4 + "x", "redirects too often"),
        ("/missing", "answered 404"),
    ):
        with pytest.raises(Problem, match=why):
            _fetch(site, path, tmp_path / "c")
        assert not (tmp_path / "c").exists()
    with pytest.raises(Problem, match="larger than"):
        _fetch(site, "/clip.mp4", tmp_path / "c", max_bytes=2000)
    assert not (tmp_path / "c").exists()


def test_a_host_that_is_allowed_but_private_is_not_reached(site: str, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="private network"):
        _fetch(site, "/clip.mp4", tmp_path / "a", private=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/x",
        "https://good.example@evil.example/",
        "http://good.example:pw@good.example/",
        "http://good.example.evil.example/",
        "http://good.example:99999999/",
        "ftp://good.example/x",
        "file:///etc/passwd",
        "//good.example/x",
        "http://good.example/\r\nHost: a",
        "http://good.example\\@evil.example/",
        "http://good.example/é",
        "http://[::1/x",
        "",
    ],
)
def test_urls_that_go_elsewhere(url: str) -> None:
    with pytest.raises(Refused):
        outside.check_url(url, ["good.example"])


def test_public_addresses() -> None:
    private = (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "fe80::1%eth0",
    )
    mapped = ("::ffff:127.0.0.1", "::ffff:10.0.0.1", "fd00::1", "100.64.0.1", "224.0.0.1", "2002:7f00:1::")
    assert not any(map(outside.is_public, (*private, *mapped)))
    assert outside.is_public("93.184.216.34")
    assert outside.is_public("2606:2800:220:1::1")


def test_a_webhook_is_signed_sent_again_until_it_arrives_and_then_never(site: str, tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    job = put(store, a_job(callback_url=f"http://{site}/hook"))
    assert job is not None
    store.claim()
    store.complete(job.id, {"num_frames": 3}, 5)
    (tmp_path / "secret").write_text(SECRET_TEXT)
    (tmp_path / "secret").chmod(0o600)
    secret = webhooks.read_secret(tmp_path / "secret")
    sender = webhooks.Webhooks(store, Metrics(), (site,), secret, lambda j: {"id": j.id}, private=True)
    _Handler.seen.clear()
    _Handler.statuses[:] = [500]
    (due,) = store.callbacks_due(time.time())
    sender._send(due)
    assert store.callbacks_due(time.time()) == []
    (due,) = store.callbacks_due(time.time() + 6)
    sender._send(due)
    assert store.callbacks_due(time.time() + 1e6) == []
    (headers, body), (again, same) = _Handler.seen
    assert headers["webhook-id"] == again["webhook-id"]
    assert json.loads(body) == json.loads(same)
    client = OpenAI(api_key="x", webhook_secret=SECRET_TEXT)
    event = client.webhooks.unwrap(body.decode(), headers)
    assert (event.type, event.data.id) == ("video.completed", job.id)
    with pytest.raises(Exception, match="signature"):
        client.webhooks.unwrap(body.decode() + " ", headers)


@pytest.mark.parametrize("text", ["", "whsec_", "secret", "whsec_***", "whsec_c2hvcnQ="])
def test_a_secret_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    (tmp_path / "secret").chmod(0o600)
    with pytest.raises(InputError, match="holds no secret"):
        webhooks.read_secret(tmp_path / "secret")
