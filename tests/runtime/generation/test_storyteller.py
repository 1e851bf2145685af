"""A story: the same bytes for any workers and after a stop, what came before never changes, and what is refused."""

import itertools
import json
import signal
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime.cli.main import run
from fairy.runtime.generation.clip_report import ClipResult
from fairy.runtime.generation.params import StoryParams
from fairy.runtime.generation.phenaki_networks import PhenakiModel, PhenakiNetworks, Prompted, Sampling
from fairy.runtime.generation.story_plan import plan_story
from fairy.runtime.generation.storyteller import Storyteller
from fairy.runtime.video import probe, read_frames
from tests.runtime.generation.test_commands import command, until

SCENES = [("a red ball", 7), ("the ball turns blue", 1.25), ("it starts to snow", 3)]
PARAMS = StoryParams(SCENES, seed=5)
MODEL = PhenakiModel(Fraction(8), 16, 16, frames=4, frames_before=3, num_inference_steps=3, guidance_scale=2.0,
                     temperature=1.0)  # fmt: skip


@pytest.fixture(scope="module")
def teller(small_storyteller: Path):
    with Storyteller.from_pretrained(small_storyteller) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(teller: Storyteller) -> ClipResult:
    return teller.generate(PARAMS)


def test_a_story_has_the_frames_of_its_scenes(reference: ClipResult) -> None:
    assert reference.frames.shape == (20, 16, 16, 3)
    assert reference.fps == 8
    assert [scene["frames"] for scene in reference.report.stages] == [7, 10, 3]
    assert reference.frames.std() > 1


def test_the_same_by_hand(small_storyteller: Path, reference: ClipResult) -> None:
    """The oracle: all codes, stretch after stretch, without a runner, and decoded in one piece."""
    networks = PhenakiNetworks(small_storyteller, torch.device("cpu"), torch.float32)
    codes = torch.empty(0, 2, 2, dtype=torch.long)
    for prompt, stretches in zip([p for p, _ in SCENES], [(2, 2), (2, 2, 1), (2,)], strict=True):
        for frames in stretches:
            before = codes[-2:] if len(codes) else None
            text = Prompted(networks.encode_text(["", prompt]), 3.0)
            how = Sampling(3, 4.0, f"5/story/{len(codes)}")
            made = networks.sample(before, frames, text, how, is_start=len(codes) == 2)
            codes = torch.cat([codes, made])
    with torch.inference_mode():
        video, _ = networks._video_tokenizer.decode(codes[None])
    wanted = (((video[0] + 1) / 2).clamp(0, 1) * 255).permute(1, 2, 3, 0).numpy()[:20]
    assert np.abs(reference.frames - wanted).max() < 0.51


def test_workers_change_no_byte_nor_does_one_that_is_killed(small_storyteller: Path, reference: ClipResult) -> None:
    with Storyteller.from_pretrained(small_storyteller, workers=2) as several:

        def kill(progress) -> None:
            if progress.done == 2:
                next(iter(several._computer._executor._processes.values())).kill()

        made = several.generate(PARAMS, on_progress=kill)
    assert made.report.frames_sha256 == reference.report.frames_sha256
    assert made.report.workers == 2
    assert made.report.lost_workers


def test_a_stopped_story_goes_on_with_the_same_bytes(
    teller: Storyteller, reference: ClipResult, tmp_path: Path
) -> None:
    out, cancel, seen = tmp_path / "story.mp4", threading.Event(), itertools.count()

    def stop(_progress) -> None:
        if next(seen) == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        teller.generate_file(out, PARAMS, on_progress=stop, cancel=cancel)
    assert not out.exists()
    report = teller.generate_file(out, PARAMS, resume=True, report=tmp_path / "report.json")
    assert report.resumed_frames == 15
    assert report.frames_sha256 == reference.report.frames_sha256
    assert not list(tmp_path.glob("*.job"))
    assert (probe(out).num_frames, probe(out).frame_rate) == (20, 8)
    assert json.loads((tmp_path / "report.json").read_text())["params"]["scenes"][1] == ["the ball turns blue", 10]


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_bytes(
    small_storyteller: Path, teller: Storyteller, tmp_path: Path
) -> None:
    scenes = [("a red ball", 100), ("the ball turns blue", 100)]
    story, out = tmp_path / "story.yaml", tmp_path / "story.mp4"
    story.write_text("".join(f"- {{frames: {frames}, prompt: {prompt}}}\n" for prompt, frames in scenes))
    arguments = ["story", str(story), "-o", str(out), "--model", str(small_storyteller), "--quiet"]
    with command(*arguments) as process:
        until(lambda: process.poll() is not None or len(list(tmp_path.glob("story.mp4.job/0*"))) > 3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert run([*arguments, "--resume", "--report", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["resumed_frames"] >= 15
    assert report["frames_sha256"] == teller.generate(StoryParams(scenes)).report.frames_sha256
    assert probe(out).num_frames == 200


def test_what_came_before_does_not_change_with_what_follows(teller: Storyteller, reference: ClipResult) -> None:
    other = teller.generate(replace(PARAMS, scenes=[*SCENES[:2], ("the ball falls", 9)]))
    assert np.array_equal(other.frames[:17], reference.frames[:17])
    assert not np.array_equal(other.frames[17:20], reference.frames[17:])
    assert not np.array_equal(teller.generate(replace(PARAMS, seed=6)).frames, reference.frames)


@torch.inference_mode()
def test_guidance_of_one_computes_one_row(small_storyteller: Path) -> None:
    networks = PhenakiNetworks(small_storyteller, torch.device("cpu"), torch.float32)
    rows = []
    networks._transformer.register_forward_pre_hook(lambda _network, inputs: rows.append(len(inputs[0])))
    text = networks.encode_text(["", "a red ball"])
    for scale in (1.0, 2.0):
        networks.sample(None, 1, Prompted(text, scale), Sampling(1, 1.0, "key"), is_start=True)
    assert rows == [1, 2]


@torch.inference_mode()
def test_the_prefix_is_computed_once_a_stretch_and_stays(small_storyteller: Path) -> None:
    networks = PhenakiNetworks(small_storyteller, torch.device("cpu"), torch.float32)
    text = Prompted(networks.encode_text(["", "a red ball"]), 2.0)
    before = networks.sample(None, 2, text, Sampling(3, 1.0, "first"), is_start=True)
    kept, seen = before.clone(), []
    network = networks._transformer
    network.register_forward_pre_hook(lambda _network, inputs: seen.append(inputs[2].clone()))
    networks.sample(before, 2, text, Sampling(5, 1.0, "second"), is_start=True)
    assert len(seen) == 5
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert torch.equal(before, kept)


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_any_number_of_frames_is_possible(frames: int, teller: Storyteller, reference: ClipResult) -> None:
    made = teller.generate(StoryParams([("a red ball", frames)], seed=5)).frames
    assert made.shape == (frames, 16, 16, 3)
    if frames == 6:
        assert np.array_equal(made, reference.frames[:6])


def test_a_story_begins_with_a_picture(teller: Storyteller, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "start.png")
    params = StoryParams([("it starts to snow", 6)], image=tmp_path / "start.png")
    made = teller.generate(params).frames
    networks = teller._networks
    given = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    wanted, _ = networks.decode(networks.encode(given), None)
    assert np.abs(made[0] - 255 * wanted[0].permute(1, 2, 0).numpy()).max() < 0.51
    assert len(made) == 6


def test_a_story_continues_a_video(teller: Storyteller, tmp_path: Path) -> None:
    """The oracle: the last three frames encoded by themselves, the first stretch after them, and all of it decoded."""
    out = tmp_path / "before.mkv"
    teller.generate_file(out, StoryParams([("a red ball", 10)], seed=1), crf=0)
    params = StoryParams([("it starts to snow", 3)], video=out, seed=2)
    made = teller.generate(params).frames
    networks = teller._networks
    last = torch.from_numpy(np.stack(list(read_frames(probe(out), 7, 10)))).permute(0, 3, 1, 2).float() / 255
    before = networks.encode(last)
    text = Prompted(networks.encode_text(["", "it starts to snow"]), 3.0)
    new = networks.sample(before, 2, text, Sampling(3, 4.0, "2/story/2"), is_start=True)
    wanted, _ = networks.decode(torch.cat([before, new]), None)
    assert len(made) == 3
    assert np.abs(made - 255 * wanted[3:6].permute(0, 2, 3, 1).numpy()).max() < 0.51


def test_stretches_begin_with_scenes_and_cover_all() -> None:
    params = StoryParams([("a", 17), ("b", 2), ("c", 1.0)])
    plan = plan_story(MODEL, params)
    told = [(stretch.scene, stretch.first, stretch.frames) for stretch in plan.stretches]
    assert told == [(0, 0, 4), (0, 4, 4), (0, 8, 1), (1, 9, 1), (2, 10, 4)]
    assert plan.num_frames == 27
    continued = plan_story(MODEL, params, continued=5)
    assert (continued.given, continued.stretches[0].first) == (3, 3)
    assert sum(stretch.frames for stretch in continued.stretches) == 14
    with_image = plan_story(MODEL, replace(params, image="start.png"))
    assert [with_image.given, *(stretch.first for stretch in with_image.stretches)] == [1, 1, 5, 9, 10]


@pytest.mark.parametrize("count", [*range(1, 12)])
def test_every_frame_is_made_once(count: int) -> None:
    for continued in (0, 1, 3, 5):
        plan = plan_story(MODEL, StoryParams([("a", count), ("b", count + 1)]), continued=continued)
        places = [place for s in plan.stretches for place in range(s.first, s.first + s.frames)]
        assert places == list(range(plan.given, plan.given + len(places)))
        frames = 2 * len(places) - (plan.given == 0)
        assert plan.num_frames <= frames <= plan.num_frames + 1


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (lambda: StoryParams([]), "has no scenes"),
        (lambda: StoryParams([("a red ball", 0)]), "duration = 0 is not possible"),
        (lambda: StoryParams([(" ", 3)]), "empty prompt"),
        (lambda: StoryParams(["a red ball"]), "no prompt with a duration"),
        (lambda: StoryParams([("x", 3)], image="a.png", video="b.mp4"), "video = .* is given beside image"),
        (lambda: plan_story(MODEL, StoryParams([("a", 3), ("b", 1)])), "Scene 2, 'b', has 1 frame at 8 frames/s"),
        (lambda: plan_story(MODEL, StoryParams([("a", 70_000), ("b", 70_000)])), "has 140000 frames"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(params, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        params()


def test_commands(small_storyteller: Path, reference: ClipResult, tmp_path: Path, capsys) -> None:
    story, report = tmp_path / "story.yaml", tmp_path / "report.json"
    story.write_text("\n".join(f"- {{prompt: {p}, {'frames' if n > 2 else 'duration'}: {n}}}" for p, n in SCENES))
    model = ["--model", str(small_storyteller), "--quiet"]
    arguments = ["story", str(story), "-o", str(tmp_path / "a.mp4"), "--seed", "5", "--report", str(report), *model]
    assert run(arguments) == 0
    assert json.loads(report.read_text())["frames_sha256"] == reference.report.frames_sha256
    out = str(tmp_path / "b.mp4")
    assert run(["generate", "a red ball", "-o", out, "--method", "phenaki", "--frames", "6", *model]) == 0
    assert probe(Path(out)).num_frames == 6
    assert run(["generate", "a red ball", "-o", out, "--method", "phenaki", "--size", "64", *model]) == 2
    assert "--size 64 goes with --method cascade" in capsys.readouterr().err
    assert run(["generate", "a red ball", "-o", out, "--method", "phenaki", "--preview", "a.png", *model]) == 2
    assert "--preview 'a.png' goes with --method cascade" in capsys.readouterr().err
    assert run(["generate", "a red ball", "-o", out, "--method", "magic", *model]) == 2
    assert "--method 'magic' is not known; choose one of cascade, imagen_video, phenaki" in capsys.readouterr().err


def test_a_folder_that_holds_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no Phenaki: its phenaki\.json cannot be read"):
        Storyteller.from_pretrained(tmp_path)


def test_without_a_model_the_remedy_is_named() -> None:
    with pytest.raises(InputError, match=r"model is needed: none ships yet; train one \(make train-phenaki\)"):
        Storyteller.from_pretrained()
