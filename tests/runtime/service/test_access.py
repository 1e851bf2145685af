"""Who may ask, and what a browser of another site must not do."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from fairy.kernels.errors import InputError
from fairy.runtime.cli import main as cli
from fairy.runtime.service.access import Gate, Keys
from fairy.runtime.service.options import ServiceOptions, Size, Span, is_loopback
from tests.runtime.service.server import Server, status_of

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


def write_keys(path: Path, text: str | None = None, mode: int = 0o600) -> Path:
    path.write_text(text or f'[alice]\nkey = "{ALICE}"\nmax_waiting = 2\n[bob]\nkey = "{BOB}"\nmax_priority = 5\n')
    path.chmod(mode)
    return path


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service on all addresses with two keys."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = write_keys(folder / "keys.toml")
    more = (
        "--host",
        "0.0.0.0",
        "--keys",
        str(keys),
        "--allow-host",
        "fairy.example",
        "--cors-origin",
        "https://app.example",
    )
    running = Server(folder / "data", *more, key=ALICE)
    running.client.base_url = running.url = running.url.replace("0.0.0.0", "127.0.0.1")
    yield running
    assert running.stop() == 0, running.log


@pytest.fixture
def bob(keyed: Server) -> httpx2.Client:
    return httpx2.Client(base_url=keyed.url, headers={"authorization": f"Bearer {BOB}"}, timeout=60)


def test_every_route_but_health_and_the_page_needs_the_key(keyed: Server) -> None:
    spec = keyed.client.get("/openapi.json").json()
    open_ones = {"/health", "/ready", "/v1/session"}
    for path, methods in spec["paths"].items():
        if path in open_ones:
            continue
        for method in methods:
            where = path.replace("{video_id}", "video_" + "0" * 32)
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {ALICE}"}):
                answer = httpx2.request(method, keyed.url + where, headers=headers)
                assert answer.status_code == 401, (method, path, answer.text)
                assert method == "head" or answer.json()["error"]["code"] == "invalid_api_key"


def test_a_key_sees_its_own_jobs_only(keyed: Server, bob: httpx2.Client, clip: Path) -> None:
    video = keyed.done(keyed.made(clip)["id"])
    assert bob.get("/v1/videos").json()["data"] == []
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/remix"),
        ("GET", "/content"),
        ("GET", "/events"),
    ):
        answer = bob.request(
            method, f"/v1/videos/{video['id']}{path}", json={"prompt": "x"} if path == "/remix" else None
        )
        assert answer.status_code == 404, (method, path)
    again = bob.post("/v1/videos", json={"prompt": "x", "source_video_id": video["id"]})
    assert again.status_code == 404
    assert bob.get("/v1/videos", params={"after": video["id"]}).status_code == 404
    assert keyed.get(video["id"])["status"] == "completed"


def test_quotas_and_rights_of_a_key(keyed: Server, bob: httpx2.Client, clip: Path) -> None:
    running = keyed.made(clip, num_inference_steps="80")
    while keyed.get(running["id"])["status"] == "queued":
        pass
    waiting = [keyed.made(clip)["id"] for _ in range(2)]
    full = keyed.create(clip)
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert full.headers["x-should-retry"] == "false"
    assert int(full.headers["retry-after"]) <= 120
    files = {"input_reference": ("a.mp4", clip.read_bytes())}
    urgent = bob.post("/v1/videos", data={"prompt": "x", "priority": "5", "num_inference_steps": "1"}, files=files)
    assert urgent.json()["queue_position"] == 0, urgent.text
    assert keyed.get(waiting[0])["queue_position"] == 1
    refused = keyed.create(clip, priority="1")
    assert refused.status_code in (403, 429)
    for job in (*waiting, running["id"]):
        keyed.client.delete(f"/v1/videos/{job}")
    bob.delete(f"/v1/videos/{urgent.json()['id']}")


def test_the_page_signs_in_by_a_cookie_that_scripts_cannot_read(keyed: Server) -> None:
    with httpx2.Client(base_url=keyed.url) as page:
        assert page.get("/v1/session").json() == {"key_required": True, "signed_in": False, "name": None}
        assert page.post("/v1/session", json={"key": "wrong"}).status_code == 401
        answer = page.post("/v1/session", json={"key": ALICE})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert ALICE not in cookie
        assert page.get("/v1/videos").status_code == 200
        assert page.get("/v1/session").json()["name"] == "alice"
        page.request("DELETE", "/v1/session")
        assert page.get("/v1/videos").status_code == 401
    name, _, rest = answer.cookies["fairy_session"].strip('"').partition(":")
    for forged in (f"bob:{rest}", f"{name}:{rest[:-1]}0", "alice", "::", f"alice:99999999999:{'0' * 64}", "a:b:c"):
        headers = {"cookie": f"fairy_session={forged}"}
        assert httpx2.get(f"{keyed.url}/v1/videos", headers=headers).status_code == 401, forged


def test_a_new_key_ends_what_the_old_one_had_opened(tmp_path: Path) -> None:
    options = ServiceOptions(data=tmp_path, keys=write_keys(tmp_path / "keys.toml"))
    gate = Gate(options, tmp_path / "secret")
    alice = gate.keys.named("alice") if gate.keys else None
    assert alice is not None
    cookie = gate.cookie(alice)
    assert gate._of_cookie(cookie) == alice
    write_keys(tmp_path / "keys.toml", f'[alice]\nkey = "{ALICE}-new"\n')
    assert Gate(options, tmp_path / "secret")._of_cookie(cookie) is None


def test_bodies_that_are_read_without_a_key_are_small(keyed: Server) -> None:
    answer = httpx2.post(f"{keyed.url}/v1/session", content=b"x" * 100_000)
    assert answer.status_code == 413
    for body in (b"", b"[]", b'{"key": 5}', b'{"key": "x", "more": 1}'):
        answer = httpx2.post(f"{keyed.url}/v1/session", content=body)
        assert answer.status_code == 400, answer.text
        assert "0 = " not in answer.json()["error"]["message"]


def test_a_request_that_is_repeated_is_answered_though_the_queue_is_full(keyed: Server, clip: Path) -> None:
    running = keyed.made(clip, num_inference_steps="80")
    while keyed.get(running["id"])["status"] == "queued":
        pass
    headers = {"Idempotency-Key": "once"}
    waiting = [keyed.create(clip, headers=headers).json(), keyed.made(clip)]
    assert keyed.create(clip).status_code == 429
    again = keyed.create(clip, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, waiting[0]["id"])
    for video in (*waiting, running):
        keyed.client.delete(f"/v1/videos/{video['id']}")


def test_hosts_and_origins(keyed: Server, service: Server) -> None:
    def get(server: Server, **headers: str) -> int:
        return httpx2.get(f"{server.url}/v1/session", headers=headers).status_code

    assert get(service, host="evil.example") == 421  # a name that resolves to this machine
    assert get(service, host="localhost:1") == 200
    assert get(service, host="10.0.0.7") == 421
    assert get(keyed, host="fairy.example") == 200
    assert get(keyed, host="evil.example") == 421
    assert get(keyed, host="10.0.0.7:8000") == 200
    assert httpx2.get(f"{service.url}/health", headers={"host": "pod-7"}).status_code == 200

    def post(**headers: str) -> int:
        return httpx2.post(f"{service.url}/v1/videos", data={"prompt": "x"}, headers=headers).status_code

    assert post(origin="https://evil.example") == 403
    assert post(origin="null") == 403
    assert post(**{"sec-fetch-site": "cross-site"}) == 403
    assert post(origin=service.url, **{"sec-fetch-site": "same-origin"}) == 400
    assert (
        "access-control-allow-origin"
        not in service.client.get("/v1/videos", headers={"origin": "https://a.example"}).headers
    )
    allowed = keyed.client.get("/v1/videos", headers={"origin": "https://app.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert (
        "access-control-allow-origin"
        not in keyed.client.get("/v1/videos", headers={"origin": "https://b.example"}).headers
    )


def test_every_answer_carries_the_policy(service: Server) -> None:
    for path in ("/health", "/v1/videos", "/nowhere", "/openapi.json"):
        headers = service.client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert service.client.get("/nowhere").json()["error"]["type"] == "not_found_error"
    assert service.client.put("/v1/videos").status_code == 405


@pytest.mark.parametrize(
    "path", ["/page/../access.py", "/page/%2e%2e/access.py", "/page/..%2faccess.py", "/page//etc/passwd"]
)
def test_the_page_s_folder_is_not_left(service: Server, path: str) -> None:
    assert status_of(service.url + path) == 404


@pytest.mark.parametrize("ids", ["..", "%2e%2e%2fjobs.sqlite3", "video_../..", "video_" + "0" * 31, "a" * 3000])
def test_ids_are_never_paths(service: Server, ids: str) -> None:
    for end in ("/content", "/cancel", "/remix"):
        method = "GET" if end == "/content" else "POST"
        assert service.client.request(method, f"/v1/videos/{ids}{end}", json={"prompt": "x"}).status_code in (404, 405)


@pytest.mark.parametrize(
    "value", ["bytes=", "bytes=9-1", "bytes=99999999-", "bytes=" + ",".join("0-1" for _ in range(3000)), "x"]
)
def test_ranges_that_are_none(service: Server, clip: Path, value: str) -> None:
    video = service.done(service.made(clip)["id"])
    answer = service.client.get(f"/v1/videos/{video['id']}/content", headers={"range": value})
    assert answer.status_code in (200, 206, 400, 416)
    service.client.delete(f"/v1/videos/{video['id']}")


def test_beyond_this_machine_only_with_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--host", "0.0.0.0", "--data", str(tmp_path / "d")]) == 2
    assert "without a key" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert [is_loopback(h) for h in ("127.0.0.9", "::1", "[::1]", "localhost", "0.0.0.0", "example.org")] == [
        True
    ] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("text", "mode", "sentence"),
    [
        ("", 0o600, "holds no key"),
        ("[a]\nkey = 5\n", 0o600, "needs a key of at least 16"),
        ('[a]\nkey = "short"\n', 0o600, "needs a key of at least 16"),
        (f'[a]\nkey = "{ALICE}"\n[b]\nkey = "{ALICE}"\n', 0o600, "has the key of"),
        (f'[a]\nkey = "{ALICE}"\nquota = 5\n', 0o600, "'quota', which is none of"),
        (f'[a]\nkey = "{ALICE}"\nmax_waiting = "x"\n', 0o600, "max_waiting = 'x'"),
        ("a = [", 0o600, "is no TOML"),
        (f'[a]\nkey = "{ALICE}"\n', 0o644, "may be read by others"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used(tmp_path: Path, text: str, mode: int, sentence: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(InputError, match=sentence):
        Keys.read(path)


def test_sizes_and_spans() -> None:
    assert [Size().parse("n", t) for t in ("5", "1.5K", "2MB", "50GB", "1t")] == [
        5,
        1500,
        2 * 10**6,
        50 * 10**9,
        10**12,
    ]
    assert [Span().parse("n", t) for t in ("90s", "1.5m", "2h", "7d")] == [90, 90, 7200, 604_800]
    for wrong in ("", "-5", "5 parsecs", "1e9", "GB"):
        with pytest.raises(InputError):
            Size().parse("max_upload", wrong)
        with pytest.raises(InputError):
            Span().parse("keep", wrong)


def test_one_service_a_folder_and_a_port_that_is_taken(
    service: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.run(["serve", "--port", "0", "--data", str(service.data)]) == 2
    assert "used by another service" in capsys.readouterr().err
    port = service.url.rpartition(":")[2]
    assert cli.run(["serve", "--port", port, "--data", str(tmp_path)]) == 2
    assert "choose another --port" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.run(["serve", "--data", str(tmp_path / "file")]) == 2
    assert "cannot hold the service's jobs" in capsys.readouterr().err


def test_options_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no origin"):
        ServiceOptions(data=tmp_path, cors_origin=("*",))
    with pytest.raises(InputError, match="must be signed"):
        ServiceOptions(data=tmp_path, webhook_host=("a.example",))
    assert os.path.isabs(ServiceOptions().folder)
