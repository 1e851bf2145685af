"""The videos API by the real client of its shape, and by plain HTTP where that client may go."""

import json
import warnings
from pathlib import Path

import av
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI

from fairy.runtime import Editor, EditParams
from tests.runtime.service.server import QUICK, Server, events_of

warnings.filterwarnings("ignore", category=DeprecationWarning)


@pytest.fixture(scope="module")
def client(service: Server) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key="any")


@pytest.fixture(scope="module")
def made(service: Server, clip: Path) -> dict:
    """A finished edit with everything beside it."""
    return service.done(service.made(clip, compare="true", seed="5", file_name="my holiday.mp4")["id"])


def test_the_unmodified_client_creates_polls_and_downloads(client: OpenAI, clip: Path, tmp_path: Path) -> None:
    with clip.open("rb") as file:
        video = client.videos.create_and_poll(
            prompt="make it sepia", input_reference=file, extra_body={"num_inference_steps": 1, "anchors": [0, 2]}
        )
    assert video.status == "completed", video
    assert video.progress == 100
    out = tmp_path / "out.mp4"
    client.videos.download_content(video.id).write_to_file(out)
    with av.open(str(out)) as container:
        assert container.streams.audio
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert client.videos.download_content(video.id, variant="thumbnail").read()[:2] == b"\xff\xd8"
    assert client.videos.download_content(video.id, variant="spritesheet").read()[:2] == b"\xff\xd8"


def test_an_edit_through_the_service_has_the_bytes_of_the_library(made: dict, clip: Path) -> None:
    params = EditParams("make it sepia", num_inference_steps=1, anchors=2, seed=5)
    with Editor.from_pretrained() as editor:
        assert editor.edit(clip, params).report.frames_sha256 == made["frames_sha256"]


def test_the_client_pages_through_the_list(client: OpenAI, made: dict) -> None:
    ids = [video.id for video in client.videos.list(limit=1)]
    assert made["id"] in ids
    assert len(ids) == len(set(ids))
    oldest_first = [video.id for video in client.videos.list(limit=100, order="asc")]
    assert sorted(oldest_first) == sorted(ids)


def test_a_result_is_edited_again(client: OpenAI, made: dict) -> None:
    video = client.videos.poll(client.videos.remix(made["id"], prompt="make it snow", extra_body=QUICK).id)
    assert (video.status, video.remixed_from_video_id) == ("completed", made["id"])


def test_a_source_is_edited_again_without_another_upload(service: Server, made: dict) -> None:
    body = {
        "prompt": "make it sepia",
        "source_video_id": made["id"],
        "seed": 5,
        **{k: int(v) for k, v in QUICK.items()},
    }
    again = service.client.post("/v1/videos", json=body).json()
    assert service.done(again["id"])["frames_sha256"] == made["frames_sha256"]


def test_the_other_way_to_send_a_video(client: OpenAI, clip: Path) -> None:
    with clip.open("rb") as file:
        video = client.videos.edit(prompt="make it sepia", video=file, extra_body=QUICK)
    assert client.videos.poll(video.id).status == "completed"


def test_delete_leaves_nothing(service: Server, client: OpenAI, clip: Path) -> None:
    video = service.done(service.made(clip)["id"])
    assert client.videos.delete(video["id"]).deleted
    with pytest.raises(NotFoundError, match="There is no such video"):
        client.videos.retrieve(video["id"])
    assert not (service.data / "jobs" / video["id"]).exists()


def test_a_queued_and_a_running_edit_are_cancelled(service: Server, clip: Path) -> None:
    running = service.made(clip, num_inference_steps="60")
    waiting = service.made(clip)
    while service.get(running["id"])["stage"] not in ("anchors", "frames"):
        pass
    assert service.get(waiting["id"])["queue_position"] == 0
    for video in (waiting, running):
        stopped = service.client.post(f"/v1/videos/{video['id']}/cancel").json()
        assert (stopped["status"], stopped["error"]["code"]) == ("failed", "cancelled")
    assert service.done(service.made(clip)["id"])["status"] == "completed"
    again = service.client.post(f"/v1/videos/{running['id']}/cancel")
    assert again.json()["error"]["code"] == "cancelled"
    assert not (service.data / "jobs" / running["id"]).exists()


def test_variants_and_their_types(service: Server, made: dict) -> None:
    path = f"/v1/videos/{made['id']}/content"
    types = {
        "video": "video/mp4",
        "compare": "video/mp4",
        "thumbnail": "image/jpeg",
        "spritesheet": "image/jpeg",
        "anchors": "image/png",
        "source": "application/octet-stream",
        "report": "application/json",
    }
    for variant, kind in types.items():
        answer = service.client.get(path, params={"variant": variant})
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind), variant
    part = service.client.get(path, headers={"range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)
    assert service.client.head(path).status_code == 200
    offered = service.client.get(path, params={"download": "true"}).headers["content-disposition"]
    assert "attachment" in offered
    assert "my%20holiday%20edited.mp4" in offered or 'filename="my holiday edited.mp4"' in offered


def test_the_report_tells_no_path_of_the_machine(service: Server, made: dict) -> None:
    report = service.client.get(f"/v1/videos/{made['id']}/content", params={"variant": "report"})
    assert report.json()["source"]["path"] == "my holiday.mp4"
    assert str(service.data) not in report.text
    assert str(service.data) not in json.dumps(service.get(made["id"]))


def test_a_file_that_is_no_video_fails_with_the_library_s_sentence(service: Server) -> None:
    video = service.done(service.made(b"this is no video" * 100, file_name="notes.mp4")["id"])
    assert video["status"] == "failed"
    assert video["error"]["code"] == "invalid_input"
    assert "notes.mp4" in video["error"]["message"]
    assert str(service.data) not in video["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"nonsense": "1"}, "nonsense"),
        ({"seed": "-1"}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"num_inference_steps": "101"}, "num_inference_steps"),
        ({"long_side": "100000"}, "long_side"),
        ({"depth": "/etc"}, "depth"),
        ({"max_pixels": "5"}, "max_pixels"),
        ({"size": "big"}, "size"),
        ({"seconds": "-4"}, "seconds"),
        ({"method": "sorcery"}, "method"),
        ({"anchors": "1,1"}, "anchors"),
        ({"prompts": "/etc/passwd"}, "prompts"),
        ({"prompts": "[[0]]"}, None),
        ({"prompts": '[[1, "' + "x" * 5000 + '"]]'}, "prompts"),
        ({"negative_prompt": "x" * 5000}, "negative_prompt"),
        ({"start": "5", "end": "2"}, "end"),
        ({"source_url": "http://localhost/x"}, "source_url"),
        ({"callback_url": "http://localhost/x"}, "callback_url"),
        ({"container": "exe"}, "container"),
        ({"mask": "/etc/passwd"}, "mask"),
        ({"mask_from": "the red car"}, "mask_from"),
        ({"codec": "png"}, "codec"),
        ({"codec": "prores"}, "codec"),
        ({"codec": "prores", "container": "mov", "lossless": "true"}, "lossless"),
        ({"bit_depth": "9"}, "bit_depth"),
        ({"lossless": "true", "pixel_format": "yuv444p"}, "pixel_format"),
        ({"source_video_id": "video_1"}, "input_reference"),
    ],
)
def test_a_wrong_field_is_refused_by_name(service: Server, clip: Path, fields: dict, param: str | None) -> None:
    answer = service.create(clip, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
        assert param in error["message"] or param == "input_reference"


def test_the_client_sees_the_sentence(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="nonsense is not known here"):
        client.videos.create(prompt="x", extra_body={"nonsense": 1})
    with pytest.raises(APIStatusError, match="model = 'sora-2' is not served here"):
        client.videos.create(prompt="x", model="sora-2")


def test_seconds_and_size_mean_a_part_and_a_box(service: Server, clip: Path) -> None:
    video = service.made(clip, seconds="0.1", size="32x24")
    assert video["params"]["end"] == 0.1
    video = service.done(video["id"])
    assert (video["num_frames"], video["size"]) == (3, "32x24")


def test_how_a_result_is_encoded(service: Server, clip: Path, made: dict, tmp_path: Path) -> None:
    video = service.made(clip, seed="5", container="mkv", codec="ffv1", lossless="true")
    assert service.made(clip, seed="5", container="mkv", codec="ffv1", lossless="true")["id"] != made["id"]
    assert service.done(video["id"])["frames_sha256"] == made["frames_sha256"]
    (tmp_path / "out.mkv").write_bytes(service.client.get(f"/v1/videos/{video['id']}/content").content)
    with av.open(str(tmp_path / "out.mkv")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt) == ("ffv1", "bgr0")


def test_a_schedule_of_instructions(service: Server, clip: Path) -> None:
    video = service.done(service.made(clip, prompts='[[2, "make it snow"]]')["id"])
    assert video["status"] == "completed"
    report = service.client.get(f"/v1/videos/{video['id']}/content", params={"variant": "report"}).json()
    assert [segment["prompt"] for segment in report["segments"]] == ["make it sepia", "make it snow"]


def test_events_tell_every_stage_and_the_anchors_before_the_end(service: Server, clip: Path) -> None:
    video = service.made(clip, num_inference_steps="4", seed="9")
    with service.client.stream("GET", f"/v1/videos/{video['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events_of("".join(answer.iter_text()))  # the stream ends with the job
    records = [data for name, data in told if name == "video"]
    assert records[-1]["status"] == "completed"
    assert {"anchors", "frames"} <= {record["stage"] for record in records}
    first_seen = next(i for i, record in enumerate(records) if record["preview_ready"])
    assert records[first_seen]["status"] == "in_progress"
    assert [r["progress"] for r in records] == sorted(r["progress"] for r in records)
    anchors = service.client.get(f"/v1/videos/{video['id']}/content", params={"variant": "anchors"})
    assert anchors.content[:4] == b"\x89PNG"


def test_whoever_comes_back_late_is_told_to_list_again(service: Server) -> None:
    for seen, told in (("5", "reset"), ("²", ""), ("-1", ""), ("9" * 30, "")):
        with service.client.stream("GET", "/v1/events", headers={"last-event-id": seen.encode()}) as answer:
            assert answer.status_code == 200
            if told:
                assert next(answer.iter_lines()).endswith(told)


def test_an_idempotency_key_makes_one_job(service: Server, clip: Path) -> None:
    headers = {"Idempotency-Key": "a-key-of-mine"}
    first, second = (service.create(clip, headers=headers).json() for _ in range(2))
    assert first["id"] == second["id"]
    other = service.create(clip, prompt="make it snow", headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    retried = service.create(clip, headers={"x-stainless-retry-count": "1"})
    assert retried.json()["id"] == first["id"]
    service.done(first["id"])


def test_the_openapi_page_is_complete(service: Server) -> None:
    spec = service.client.get("/openapi.json").json()
    form = spec["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"prompt", "input_reference", "seed", "num_inference_steps", "anchors", "start"} <= set(form["properties"])
    assert all(part.get("description") for part in form["properties"].values())
    assert "depth" not in form["properties"]
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)


def test_a_batch_of_instructions_on_one_upload(service: Server, clip: Path) -> None:
    files = {"input_reference": ("clip.mp4", clip.read_bytes())}
    fields = {"prompt[]": ["make it sepia", "make it snow"], **QUICK}
    before = len(list((service.data / "sources").iterdir()))
    made = service.client.post("/v1/videos/batches", data=fields, files=files).json()["data"]
    assert [video["prompt"] for video in made] == fields["prompt[]"]
    assert len(list((service.data / "sources").iterdir())) == before + 1
    videos = [service.done(video["id"]) for video in made]
    assert [video["status"] for video in videos] == ["completed"] * 2
    assert videos[0]["frames_sha256"] != videos[1]["frames_sha256"]
    for data in ({"prompt": "x"}, {"prompt[]": ["x", ""]}, {"prompt[]": ["x"] * 101}):
        assert service.client.post("/v1/videos/batches", data=data, files=files).status_code == 400
    assert len(list((service.data / "sources").iterdir())) == before + 1
