"""Forms that are hostile, damaged, slow or cut off: one sentence, nothing left behind, the service goes on."""

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fairy.runtime.service.uploads import display_name
from tests.runtime.service.server import Server

BOUNDARY = "xYzZy"


@pytest.fixture(autouse=True)
def _nothing_is_left(service: Server) -> Iterator[None]:
    before = _left(service)
    yield
    ends = time.monotonic() + 10
    while _left(service) != before and time.monotonic() < ends:
        time.sleep(0.05)
    assert _left(service) == before
    assert service.client.get("/health").status_code == 200


def _left(service: Server) -> set[str]:
    folders = (service.data / "incoming", service.data / "sources", service.data / "jobs")
    return {str(path) for folder in folders for path in folder.iterdir()}


def part(name: str, value: bytes, *, file_name: str | None = None, more: str = "") -> bytes:
    file = "" if file_name is None else f'; filename="{file_name}"'
    return (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'.encode() + value + b"\r\n"
    )


END = f"--{BOUNDARY}--\r\n".encode()
PROMPT = part("prompt", b"make it snow")


def post(service: Server, body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}"):
    return service.client.post("/v1/videos", content=body, headers={"content-type": content_type})


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (PROMPT, "incomplete_form"),
        (b"", "incomplete_form"),
        (b"nonsense", "damaged_form"),
        (PROMPT + END, "invalid_value"),
        (part("input_reference", b"", file_name="a.mp4") + PROMPT + END, "empty_video"),
        (
            part("input_reference", b"x", file_name="a") + part("video", b"x", file_name="b") + PROMPT + END,
            "two_videos",
        ),
        (part("attachment", b"x", file_name="a.mp4") + PROMPT + END, "unknown_file"),
        (PROMPT + PROMPT + END, "given_twice"),
        (part("prompt", b"\xff\xfe") + END, "not_text"),
        (part("prompt", b"a" * 70_000) + END, "too_long"),
        (b"".join(part(f"f{i}", b"1") for i in range(300)) + END, "too_many_fields"),
        (part("prompt", b"x", more="X-Long: " + "a" * 20_000 + "\r\n") + END, "damaged_form"),
        (part("prompt", b"x", more="".join(f"X-{i}: 1\r\n" for i in range(100))) + END, "damaged_form"),
        (f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nx\r\n".encode() + END, "damaged_form"),
    ],
)
def test_a_form_that_cannot_be_read(service: Server, body: bytes, code: str) -> None:
    answer = post(service, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "multipart/form-data; boundary=" + "b" * 100, ""]
)
def test_what_is_no_form(service: Server, kind: str) -> None:
    assert post(service, PROMPT + END, kind).json()["error"]["code"] == "not_multipart"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\x.mp4", "/abs/olute.mp4", "a\r\nX-Evil: 1", "\x00.mp4", "."]
)
def test_a_file_name_is_never_part_of_a_path(service: Server, clip: Path, name: str) -> None:
    clean = name.replace("\r\n", "%0d%0a").replace("\x00", "%00")
    body = part("input_reference", clip.read_bytes(), file_name=clean.replace("\\", "\\\\")) + PROMPT
    answer = post(service, body + part("num_inference_steps", b"1") + END)
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert "/" not in video["file_name"]
    assert "\\" not in video["file_name"]
    service.done(video["id"])
    shown = service.client.get(f"/v1/videos/{video['id']}/content", params={"download": "true"})
    assert "x-evil" not in shown.headers
    service.client.delete(f"/v1/videos/{video['id']}")


def test_names_for_display() -> None:
    assert display_name("C:\\clips\\film.mp4") == "film.mp4"
    assert display_name("../..") == "video"
    assert display_name('a"b\r\nc.mp4') == "abc.mp4"
    assert display_name("…" * 500).encode().__len__() <= 200
    assert display_name("映画.mkv") == "映画.mkv"


def test_an_upload_that_is_announced_too_large_is_refused_before_it_is_sent(service: Server) -> None:
    with socket.create_connection(_address(service)) as line:
        line.sendall(_head(service, "Content-Length: 99999999999"))
        assert b" 413 " in line.recv(200)


def test_an_upload_that_stops_is_forgotten(service: Server) -> None:
    with socket.create_connection(_address(service)) as line:
        body = part("input_reference", b"x" * 3_000_000, file_name="a.mp4")
        line.sendall(_head(service, f"Content-Length: {len(body) + 100_000}") + body)
        time.sleep(0.3)  # and the client goes away


def test_an_upload_that_stops_arriving_is_given_up(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--upload-idle", "1", ready=False)
    with socket.create_connection(_address(server)) as line:
        body = part("input_reference", b"x" * 100_000, file_name="a.mp4")
        line.sendall(_head(server, f"Content-Length: {len(body) + 100_000}") + body)
        line.settimeout(20)
        assert b" 408 " in line.recv(200)
    assert not any((tmp_path / "data" / "incoming").iterdir())
    assert server.stop() == 0


def test_a_bomb_of_pixels_is_refused_by_a_sentence(service: Server) -> None:
    made = io.BytesIO()
    Image.new("RGB", (8, 8)).save(made, "WEBP", lossless=True)
    data = bytearray(made.getvalue())
    where = data.index(b"VP8L") + 9  # its size: 14 bits each for width and height, less one
    data[where : where + 4] = ((int.from_bytes(data[where : where + 4], "little") & ~0xFFFFFFF) | 0xFFFFFFF).to_bytes(
        4, "little"
    )
    video = service.done(service.made(bytes(data), file_name="bomb.webp")["id"])
    assert (video["status"], video["error"]["code"]) == ("failed", "invalid_input")
    assert "pixels" in video["error"]["message"]
    service.client.delete(f"/v1/videos/{video['id']}")


def _address(service: Server) -> tuple[str, int]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    return host, int(port)


def _head(service: Server, length: str) -> bytes:
    return (
        f"POST /v1/videos HTTP/1.1\r\nHost: {service.url.removeprefix('http://')}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n{length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("body", ["", "[]", "7", "{", '{"prompt": 5}', "[" * 100_000, '{"prompt": "x"}'])
def test_json_that_asks_for_nothing(service: Server, body: str) -> None:
    answer = service.client.post("/v1/videos", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
