"""The page in a real browser against the real service: the whole way of a creator, by pointer and by keyboard.

Needs Chromium (Debian: `apt-get install chromium`), named by CHROMIUM or on PATH, and Playwright's Python package.
The checks of accessibility also need axe-core: `npm pack axe-core`, unpacked, and AXE=…/axe.min.js.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.runtime.conftest import make_frames, write_clip
from tests.runtime.service.server import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; the page is not tested")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
AXE = Path(os.environ.get("AXE", "build/axe-core/package/axe.min.js"))
PAGE = Path(__file__).resolve().parents[3] / "runtime" / "service" / "page"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
GAP = 4
LIMIT_S = 40.0
MOST_STEPS = 100  # that the service takes
LONG = {"num_inference_steps": 12}  # with the long film: anchors within seconds, all frames within a minute
KEY = "a-key-for-the-tests-of-the-page"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed; the page is not tested"),
]


class Browser:
    """One page, what went wrong on it, and how to wait for it without evaluating text (its policy forbids that)."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._console)

    def _console(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)

    def open(self, place: str = "") -> "Browser":
        self.page.goto(self.url + "/" + place)
        self.until(lambda: self.page.evaluate("[...document.querySelectorAll('main > section')].some(s => !s.hidden)"))
        return self

    def until(self, holds: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        ends = time.monotonic() + limit_s
        while not (value := holds()):
            assert time.monotonic() < ends, (self.page.inner_text("body")[:3000], self.faults)
            time.sleep(0.05)
        return value

    def until_shown(self, selector: str) -> None:
        self.page.wait_for_selector(selector, state="visible", timeout=LIMIT_S * 1000)

    def choose(self, clip: Path) -> None:
        self.page.set_input_files("#file", clip)
        self.until_shown("#source")
        self.until(lambda: self.page.inner_text("#part-length") or self.page.is_visible("#undecodable"))

    def set(self, **parameters: object) -> None:
        if not self.page.evaluate("document.getElementById('more').open"):
            self.page.click("#more > summary")
        for name, value in parameters.items():
            self.page.fill(f"#parameter-{name}", str(value))

    def start(self, prompt: str = "make it sepia", **parameters: object) -> str:
        """Start the edit that is prepared; the new job's id."""
        before = self.id
        self.page.fill("#prompt", prompt)
        self.set(**{"num_inference_steps": 1, "anchors": 2, **parameters})
        self.page.click("#start-edit")
        return self.next_id(before)

    def next_id(self, before: str) -> str:
        return str(self.until(lambda: self.id != before and self.id))

    @property
    def id(self) -> str:
        return str(self.page.evaluate("location.hash.slice(1)"))

    @property
    def focus(self) -> str:
        return str(self.page.evaluate("document.activeElement.id"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Browser]]:
    """Pages of their own contexts; at the end none has had an error, such as one of the policy of content."""
    opened: list[Browser] = []

    def _open(url: str, **options: Any) -> Browser:
        context = chromium.new_context(accept_downloads=True, **options)
        opened.append(Browser(context.new_page(), url))
        return opened[-1]

    yield _open
    for browser in opened:
        browser.page.context.close()
        assert browser.faults == []


@pytest.fixture
def browser(open_page: Callable[..., Browser], service: Server) -> Browser:
    return open_page(service.url).open()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty frames, 0.8 s, with a tone."""
    return write_clip(tmp_path_factory.mktemp("film") / "my film.mp4", make_frames(20, 96, 128))


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough for something to be done while it is edited."""
    return write_clip(tmp_path_factory.mktemp("long") / "long film.mp4", make_frames(150, 96, 128))


@pytest.fixture(scope="module")
def done(service: Server, film: Path) -> dict[str, Any]:
    """A finished edit, made by the interface that programs use."""
    return service.done(service.made(film, compare="true", seed="5", end="0.4", file_name="my film.mp4")["id"])


def _frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _download(service: Server, video_id: str, variant: str, folder: Path) -> Path:
    path = folder / f"{variant}.mp4"
    path.write_bytes(service.client.get(f"/v1/videos/{video_id}/content", params={"variant": variant}).content)
    return path


def _canvas(browser: Browser, name: str = "picture") -> np.ndarray:
    """What is drawn: [height, width, 3]."""
    code = f"""(() => {{ const c = document.getElementById('{name}');
        return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }})()"""
    height, width, values = browser.page.evaluate(code)
    return np.asarray(values, dtype=np.uint8).reshape(height, width, 4)[..., :3]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


# The way of a creator


def test_from_a_chosen_file_to_the_downloaded_video(
    browser: Browser, service: Server, film: Path, tmp_path: Path
) -> None:
    page = browser.page
    browser.choose(film)
    assert page.inner_text("#source-name") == "my film.mp4"
    browser.until(lambda: _canvas(browser, "thumbnails").std() > 5)
    page.fill("#end", "0.4")
    page.press("#end", "Tab")
    assert "0.4 s" in page.inner_text("#part-length")
    page.click(".look >> text=Snow")
    assert page.input_value("#prompt") == "make it snow"
    assert page.get_attribute(".look[data-prompt='make it snow']", "aria-pressed") == "true"
    video_id = browser.start("make it snow", seed=7)
    browser.until_shown("#done")
    assert page.inner_text("h1#job-title") == "make it snow"

    made = service.get(video_id)
    assert made["params"] == {"num_inference_steps": 1, "anchors": 2, "seed": 7, "end": 0.4}
    assert (made["file_name"], made["num_frames"], made["has_compare"]) == ("my film.mp4", 10, True)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "my film edited.mp4"
    download.value.save_as(tmp_path / "saved.mp4")
    assert (tmp_path / "saved.mp4").read_bytes() == _download(service, video_id, "video", tmp_path).read_bytes()


def test_the_slider_shows_source_and_result_of_the_same_frame(
    browser: Browser, service: Server, done: dict[str, Any], tmp_path: Path
) -> None:
    page = browser.open(f"#{done['id']}").page
    both = _frames(_download(service, done["id"], "compare", tmp_path))
    width = (both.shape[2] - GAP) // 2
    source, result = both[:, :, :width], both[:, :, width + GAP :]
    assert _difference(source, result) > 8
    browser.until(lambda: page.evaluate("document.getElementById('player-video').readyState") >= 2)

    drawn = _settled(browser, source[0].shape)
    half = width // 2
    assert _difference(drawn[:, : half - 2], source[0][:, : half - 2]) < 4
    assert _difference(drawn[:, half + 2 :], result[0][:, half + 2 :]) < 4
    for wrong in (-GAP, GAP):  # the gap lies in neither half
        shifted = both[0][:, width + GAP + wrong :][:, half + 2 : width - GAP]
        right = result[0][:, half + 2 : width - GAP]
        now = drawn[:, half + 2 : width - GAP]
        assert _difference(now, right) < _difference(now, shifted)

    page.evaluate("document.getElementById('player-video').currentTime = 5 * 0.04 + 0.02")
    browser.until(lambda: _difference(_canvas(browser)[:, half + 2 :], result[5][:, half + 2 :]) < 4)
    assert _difference(_canvas(browser)[:, : half - 2], source[5][:, : half - 2]) < 4

    page.focus("#split")
    page.keyboard.press("End")
    assert _difference(_canvas(browser), source[5]) < 4
    page.keyboard.press("Home")
    assert _difference(_canvas(browser), result[5]) < 4
    assert page.get_attribute("#split", "aria-valuetext") == "0 % source, 100 % result"

    for hold, release in ((_press_pointer, page.mouse.up), (_press_key, lambda: page.keyboard.up(" "))):
        hold(page)
        assert _difference(_canvas(browser), source[5]) < 4
        release()
        assert _difference(_canvas(browser), result[5]) < 4

    page.click("#beside")
    assert _canvas(browser).shape == both[0].shape
    assert _difference(_canvas(browser), both[5]) < 4


def _settled(browser: Browser, shape: tuple[int, ...]) -> np.ndarray:
    browser.until(lambda: _canvas(browser).shape == shape)
    return _canvas(browser)


def _press_pointer(page: Any) -> None:
    page.hover("#flip")
    page.mouse.down()


def _press_key(page: Any) -> None:
    page.focus("#flip")
    page.keyboard.down(" ")


def test_the_result_plays_with_its_sound(browser: Browser, done: dict[str, Any]) -> None:
    page = browser.open(f"#{done['id']}").page
    browser.until(lambda: page.evaluate("document.getElementById('player-video').readyState") >= 2)
    before = _settled(browser, (96, 128, 3))
    page.click("#play")
    assert browser.until(lambda: page.inner_text("#play") == "Pause")
    browser.until(lambda: page.evaluate("document.getElementById('player-video').webkitAudioDecodedByteCount") > 0)
    browser.until(lambda: _difference(_canvas(browser), before) > 0.5)
    page.click("#play")
    page.click("#mute")
    assert page.evaluate("document.getElementById('player-video').muted")


def test_the_look_is_there_before_the_rest_and_can_be_changed(
    browser: Browser, service: Server, long_film: Path
) -> None:
    page = browser.page
    browser.choose(long_film)
    first = browser.start("make it snow", **LONG)
    browser.until_shown("#anchors-picture")
    assert page.evaluate("document.getElementById('anchors-picture').naturalWidth") >= 2 * 128
    assert page.is_visible("#bar")

    page.click("#other-seed")
    second = browser.next_id(first)
    assert service.done(first)["error"]["code"] == "cancelled"
    assert service.get(second)["params"]["seed"] > 0

    browser.until_shown("#other-words")
    page.click("#other-words")
    assert browser.focus == "words"
    page.fill("#words", "make it sepia")
    page.click("#words-form button[type=submit]")
    third = browser.next_id(second)
    made = service.get(third)
    assert made["prompt"] == "make it sepia"
    assert made["params"]["seed"] == service.get(second)["params"]["seed"]

    browser.until_shown("#go-on")
    page.click("#go-on")
    assert page.is_hidden("#go-on")
    page.click("#cancel")
    browser.until_shown("#failed")
    assert "stopped" in page.inner_text("#failure")
    assert service.done(third)["error"]["code"] == "cancelled"


def test_a_reload_picks_up_where_it_was(browser: Browser, service: Server, long_film: Path) -> None:
    page = browser.page
    browser.choose(long_film)
    video_id = browser.start("make it snow", **LONG)
    page.reload()
    browser.until_shown("#running")
    assert browser.id == video_id
    assert page.inner_text("#job-title") == "make it snow"
    page.click("#new-edit")
    browser.until_shown("#compose")
    page.reload()
    browser.until_shown(f"#edits a[href='#{video_id}'] progress")  # without its id it is in the list, running
    page.click(f"#edits a[href='#{video_id}']")
    browser.until_shown("#running")
    page.click("#cancel")
    browser.until_shown("#failed")


def test_who_waits_sees_the_place_in_the_queue(browser: Browser, service: Server, long_film: Path) -> None:
    ids = [service.made(long_film, prompt="make it snow", **LONG)["id"] for _ in range(3)]
    for video_id, place in ((ids[1], "next in the queue"), (ids[2], "1 edit comes first")):
        browser.open(f"#{video_id}")
        browser.until(lambda place=place: place in browser.page.inner_text("#stage-line"))
    service.client.post(f"/v1/videos/{ids[0]}/cancel")
    browser.until(lambda: "next in the queue" in browser.page.inner_text("#stage-line"))
    browser.page.click("#cancel")
    browser.until_shown("#failed")
    service.client.post(f"/v1/videos/{ids[1]}/cancel")


def test_settings_are_used_again_and_results_edited_further(
    browser: Browser, service: Server, done: dict[str, Any]
) -> None:
    page = browser.open(f"#{done['id']}").page
    page.click("#edit-source")
    browser.until_shown("#source")
    browser.until(lambda: page.inner_text("#part-length"))
    assert page.input_value("#prompt") == done["prompt"]
    assert page.input_value("#parameter-seed") == "5"
    assert page.input_value("#end") == "0:00.40"
    again = browser.start("make it snow", seed=5)
    made = service.done(again)
    assert (made["params"]["end"], made["file_name"]) == (0.4, "my film.mp4")

    browser.until_shown("#done")
    page.click("#edit-result")
    browser.until(lambda: page.inner_text("#part-length"))
    assert "make it snow" in page.inner_text("#source-name")
    remixed = browser.start("make it sepia")
    made = service.done(remixed)
    assert (made["status"], made["remixed_from_video_id"], made["num_frames"]) == ("completed", again, 10)
    assert "end" not in made["params"]


def test_an_edit_is_deleted_after_a_question(browser: Browser, service: Server, film: Path) -> None:
    video_id = service.made(film, prompt="make it a comic")["id"]
    page = browser.page
    item = f"#edits li:has(a[href='#{video_id}'])"
    browser.until_shown(item)
    service.done(video_id)
    page.click(f"{item} button >> text=Delete")
    page.keyboard.press("Escape")
    assert page.is_visible(item)
    page.click(f"{item} button >> text=Delete")
    page.click("#confirm button[value=yes]")
    page.wait_for_selector(item, state="detached")
    assert service.client.get(f"/v1/videos/{video_id}").status_code == 404
    for gone in (video_id, "%", "video_of_nobody"):
        browser.open()
        browser.until_shown("#compose")
        browser.open(f"#{gone}")
        browser.until_shown("#missing")


def test_a_file_is_dropped_and_sent_once(browser: Browser, service: Server, film: Path) -> None:
    page = browser.page
    sizes: list[int] = []

    def _post(request: Any) -> None:
        if request.method == "POST":
            sizes.append(int(request.all_headers()["content-length"]))

    page.on("requestfinished", _post)
    dropped = """(bytes) => { const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(bytes)], 'dropped.mp4', {type: 'video/mp4'}));
        document.getElementById('prompt').dispatchEvent(
            new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})); }"""
    page.evaluate(dropped, list(film.read_bytes()))
    browser.until(lambda: page.inner_text("#part-length"))
    first = browser.start("make it snow")
    browser.until_shown("#done")
    page.click("#new-edit")
    second = browser.start("make it sepia")
    browser.until_shown("#done")
    assert service.get(second)["file_name"] == "dropped.mp4" == service.get(first)["file_name"]
    assert sizes[0] > film.stat().st_size
    assert 0 < sizes[1] < 2000


def test_older_edits_are_shown_when_asked_for(open_page: Callable[..., Browser], service: Server, film: Path) -> None:
    ids = [service.done(service.made(film, end="0.1")["id"])["id"] for _ in range(2)]
    browser = open_page(service.url)
    pages = re.compile(r"/v1/videos\?limit=20")
    browser.page.route(pages, lambda route: route.continue_(url=route.request.url.replace("limit=20", "limit=1")))
    browser.open()
    shown = "[...document.querySelectorAll('#edits a')].map(a => a.hash.slice(1))"
    browser.until(lambda: browser.page.evaluate(shown) == [ids[1]])
    browser.page.click("#older")
    browser.until(lambda: browser.page.evaluate(shown) == [ids[1], ids[0]])


# What can go wrong


def test_limits_are_told_before_anything_is_sent(
    open_page: Callable[..., Browser], service: Server, film: Path
) -> None:
    browser = open_page(service.url)
    posts = []
    browser.page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    limits = {"max_upload_bytes": film.stat().st_size - 1, "max_seconds": 0.5}

    def _answer(route: Any) -> None:
        route.fulfill(json={**service.client.get("/v1/service").json(), **limits})

    browser.page.route("**/v1/service", _answer)
    browser.open()
    browser.page.set_input_files("#file", film)
    assert re.search("my film.mp4 has .* takes up to", browser.page.inner_text("#file-error"))
    assert browser.page.is_hidden("#source")
    limits["max_upload_bytes"] *= 2
    browser.page.reload()
    browser.open()
    browser.choose(film)
    assert browser.page.input_value("#end") == "0:00.50"  # as much as the service edits is chosen
    browser.page.fill("#end", "0.7")
    browser.page.fill("#prompt", "make it snow")
    browser.page.click("#start-edit")
    assert "up to 0.5 s" in browser.page.inner_text("#trim-error")
    assert posts == []


def test_sending_is_shown_and_can_be_stopped(browser: Browser, service: Server, film: Path, tmp_path: Path) -> None:
    page = browser.page
    large = tmp_path / "large.mp4"
    large.write_bytes(film.read_bytes() + bytes(4_000_000))
    before = service.client.get("/v1/videos").json()["first_id"]
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 400_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    browser.choose(large)
    page.fill("#prompt", "make it snow")
    page.click("#start-edit")
    browser.until(lambda: 0 < page.evaluate("document.getElementById('sent').value") < 100)
    assert re.search(r"Sending the video, .* of 4.\d MB", page.inner_text("#sending-text"))
    assert browser.focus == "stop-sending"
    page.click("#stop-sending")
    browser.until_shown("#start-edit")
    assert browser.focus == "start-edit"
    assert page.inner_text("#submit-error") == ""
    assert service.client.get("/v1/videos").json()["first_id"] == before


@pytest.mark.parametrize(
    ("start", "end", "sentence"),
    [("soon", "", "Write times"), ("0.5", "0.2", "after the start"), ("3", "", "behind"), ("1:2:3:4", "", "Write")],
)
def test_impossible_times_are_told_at_their_fields(
    browser: Browser, film: Path, start: str, end: str, sentence: str
) -> None:
    browser.choose(film)
    browser.page.fill("#start", start)
    browser.page.fill("#end", end)
    browser.page.press("#end", "Tab")
    browser.page.click("#start-edit")
    assert sentence in browser.page.inner_text("#trim-error")
    assert browser.page.get_attribute("#start", "aria-invalid") == "true"
    assert browser.focus == "start"


def test_a_refusal_of_the_service_stands_at_the_field_it_is_about(browser: Browser, film: Path) -> None:
    browser.choose(film)
    browser.page.fill("#prompt", "make it snow")
    browser.set(anchors="0, many")
    browser.page.click("#start-edit")
    browser.until(lambda: browser.page.inner_text("#parameter-anchors-error"))
    browser.until(lambda: browser.focus == "parameter-anchors")
    browser.set(anchors="", num_inference_steps=MOST_STEPS + 1)
    browser.page.click("#start-edit")
    browser.until(
        lambda: f"between 1 and {MOST_STEPS}" in browser.page.inner_text("#parameter-num_inference_steps-error")
    )
    browser.until(lambda: browser.focus == "parameter-num_inference_steps")


def test_what_is_missing_is_said_and_has_the_focus(browser: Browser, film: Path) -> None:
    browser.page.click("#start-edit")
    assert "Choose a video" in browser.page.inner_text("#file-error")
    assert browser.focus == "file"
    browser.choose(film)
    browser.page.click("#start-edit")
    assert "Write what" in browser.page.inner_text("#prompt-error")
    assert browser.focus == "prompt"


def test_a_video_this_browser_cannot_show_is_edited_all_the_same(
    browser: Browser, service: Server, tmp_path: Path
) -> None:
    clip = tmp_path / "phone.mp4"
    with av.open(str(clip), "w") as container:
        video = container.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        for picture in make_frames(10, 96, 128):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    browser.choose(clip)
    assert "cannot show this video" in browser.page.inner_text("#undecodable")
    assert browser.page.is_hidden("#strip")
    browser.page.fill("#end", "0.2")
    made = service.done(browser.start("make it snow"))
    assert (made["status"], made["num_frames"], made["params"]["end"]) == ("completed", 5, 0.2)
    browser.until_shown("#done")
    browser.until(lambda: browser.page.evaluate("document.getElementById('player-video').readyState") >= 2)


def test_a_text_that_looks_like_markup_stays_text(browser: Browser, service: Server, film: Path) -> None:
    evil = "<img src=x onerror=document.title='evil'> make it snow"
    video = service.done(service.made(film, prompt=evil, file_name="<b>film</b>.mp4")["id"])
    browser.open(f"#{video['id']}")
    browser.until_shown("#done")
    assert browser.page.inner_text("#job-title") == evil
    assert browser.page.query_selector("main b, #job-title img, #edits .edit-words img") is None


def test_what_failed_says_why_and_can_be_tried_again(browser: Browser, service: Server, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 100)
    browser.choose(broken)
    first = browser.start("make it snow")
    browser.until_shown("#failed")
    assert service.get(first)["error"]["message"] == browser.page.inner_text("#failure")
    browser.page.click("#again")
    browser.next_id(first)
    browser.until_shown("#failed")


def test_the_page_says_that_the_service_is_gone_and_goes_on_when_it_is_back(
    open_page: Callable[..., Browser], film: Path, tmp_path: Path
) -> None:
    first = Server(tmp_path / "data", "--grace", "1s", ready=False)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: first.process.kill())
        browser = open_page(first.url).open()
        browser.choose(film)
        video_id = browser.start("make it snow")
        first.kill()
        browser.until(lambda: "does not answer" in browser.page.inner_text("#notice"))
        port = first.url.rpartition(":")[2]
        second = Server(tmp_path / "data", "--port", port, "--grace", "1s", ready=False)
        stack.callback(second.stop)
        browser.until(lambda: not browser.page.is_visible("#notice"))
        assert browser.id == video_id
        assert browser.page.is_visible("#running")


def test_a_model_that_is_being_loaded_is_told_until_it_is_ready(
    open_page: Callable[..., Browser], service: Server
) -> None:
    browser = open_page(service.url)
    told = {**service.client.get("/v1/service").json(), "ready": False}
    browser.page.route("**/v1/service", lambda route: route.fulfill(json=told))
    browser.open()
    browser.until(lambda: "being loaded" in browser.page.inner_text("#notice"))
    told["ready"] = True
    browser.until(lambda: not browser.page.is_visible("#notice"))


def test_a_key_is_asked_for_and_kept_from_scripts(
    open_page: Callable[..., Browser], tmp_path: Path, film: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[ann]\nkey = "{KEY}"\n')
    keys.chmod(0o600)
    server = Server(tmp_path / "data", "--keys", str(keys), key=KEY, ready=False)
    try:
        browser = open_page(server.url).open()
        page = browser.page
        assert browser.focus == "key"
        page.fill("#key", "a wrong key, for sure")
        page.keyboard.press("Enter")
        browser.until(lambda: "not known" in page.inner_text("#key-error"))
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        browser.until_shown("#compose")
        stored = "JSON.stringify([localStorage, sessionStorage, document.cookie, document.getElementById('key').value])"
        assert KEY not in page.evaluate(stored)
        assert page.evaluate("document.cookie") == ""
        browser.choose(film)
        video_id = browser.start()
        page.reload()
        browser.until_shown("#job")
        assert browser.id == video_id
        page.click("#sign-out")
        browser.until_shown("#sign-in")
        assert page.is_hidden("#history")
    finally:
        server.stop()


# For everybody


def test_everything_is_reached_by_the_keyboard(browser: Browser, service: Server, film: Path) -> None:
    page = browser.page
    page.on("filechooser", lambda chooser: None)  # from here on the browser asks us; it takes a moment to begin
    _tab_to(browser, "file")
    time.sleep(0.5)
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(film)
    browser.until(lambda: page.inner_text("#part-length"))
    _tab_to(browser, "handle-end")
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#handle-end", "aria-valuetext") == page.input_value("#end") == "0:00.50"
    _tab_to(browser, "prompt")
    page.keyboard.type("make it sepia")
    page.keyboard.press("Control+Enter")
    video_id = browser.next_id("")
    browser.until_shown("#done")
    assert service.get(video_id)["params"] == {"end": 0.5}
    assert browser.focus == "job-title"
    for name in ("split", "play", "seek", "mute", "flip", "beside", "full", "download", "edit-result", "edit-source"):
        _tab_to(browser, name)


def _tab_to(browser: Browser, name: str) -> bool:
    for _ in range(60):
        if browser.focus == name:
            return True
        browser.page.keyboard.press("Tab")
    raise AssertionError(f"{name} is not reached; the focus is at {browser.focus}")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barrier_and_nothing_wider_than_the_screen(
    open_page: Callable[..., Browser], service: Server, done: dict[str, Any], long_film: Path, width: int, scheme: str
) -> None:
    browser = open_page(service.url, viewport={"width": width, "height": 740}, color_scheme=scheme).open()
    page = browser.page
    found = {"start": _barriers(browser)}
    browser.choose(long_film)
    page.fill("#start", "soon")
    page.press("#start", "Tab")
    browser.set(seed=3)
    page.click("#rest > summary")
    found["form"] = _barriers(browser)
    page.fill("#start", "")
    browser.start("make it snow", **LONG)
    browser.until_shown("#go-on")
    found["look"] = _barriers(browser)
    page.click("#cancel")
    browser.until_shown("#failed")
    found["stopped"] = _barriers(browser)
    browser.open(f"#{done['id']}")
    browser.until_shown("#done")
    page.click("#settings > summary")
    found["result"] = _barriers(browser)
    page.click("#delete-job")
    found["question"] = _barriers(browser)
    assert {place: what for place, what in found.items() if what} == {}


def _barriers(browser: Browser) -> list[str]:
    """What axe finds serious, and whether something sticks out."""
    time.sleep(0.5)  # colours fade in
    page = browser.page
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    found = ["wider than the screen"] if wide else []
    if not AXE.is_file():
        pytest.skip(f"axe-core is not at {AXE} (npm pack axe-core, AXE=…): barriers are not looked for")
    page.evaluate(AXE.read_text() + "; undefined")
    results = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    for rule in results["violations"]:
        if rule["impact"] in ("serious", "critical", "moderate"):
            found += [f"{rule['id']}: {node['html'][:150]} {node['failureSummary'][:200]}" for node in rule["nodes"]]
    return found


# What ships


def test_the_page_asks_nobody_else_and_has_no_markup_from_data() -> None:
    for path in PAGE.rglob("*"):
        if path.suffix not in (".js", ".css", ".html", ".svg"):
            continue
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|\bimport\(|@import", text), path
        assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|(local|session)Storage", text), path
        if path.suffix == ".html":
            assert not re.search(r"\sstyle=|\son[a-z]+=|<script(?![^>]*\bsrc=)|<style", text), path
