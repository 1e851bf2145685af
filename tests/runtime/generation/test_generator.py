"""A generation: shapes by contract, the same bytes for any workers and after a stop, and what is refused."""

import itertools
import json
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime.denoise.guidance import scale_at
from fairy.runtime.generation.cascade import Cascade
from fairy.runtime.generation.generator import Generator
from fairy.runtime.generation.networks import CascadeNetworks, schedule_of, stage_noise
from fairy.runtime.generation.params import GenerateParams
from fairy.runtime.video import VideoWriter, probe, read_frames

PARAMS = GenerateParams("a red ball", num_frames=11, seed=5)


@pytest.fixture(scope="module")
def generator(small_generator: Path):
    with Generator.from_pretrained(small_generator) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(generator: Generator):
    return generator.generate(PARAMS)


def test_the_stages_keep_their_shape_contract(reference, generator: Generator) -> None:
    assert [str(shape) for shape in generator.cascade.shapes] == [
        "4 frames of 16×16 at 4 frames/s",
        "10 frames of 16×16 at 12 frames/s",
        "10 frames of 32×32 at 12 frames/s",
        "10 frames of 64×64 at 12 frames/s",
    ]
    assert reference.frames.shape == (11, 64, 64, 3)
    assert reference.fps == 12
    assert [stage["frames"] for stage in reference.report.stages] == [5, 13, 13, 13]
    assert reference.frames.std() > 1


def test_one_window_of_the_base_stage_is_the_plain_loop_of_ddim(small_generator: Path, generator: Generator) -> None:
    """The oracle: diffusers' own DDIM scheduler around the network, in one piece."""
    from diffusers import DDIMScheduler

    made = generator.generate(GenerateParams("a red ball", num_frames=4, fps=4, size=16, seed=5)).frames
    networks = CascadeNetworks(small_generator, torch.device("cpu"), torch.float32)
    stage = networks.cascade.base
    text = networks.encode_text(["", "a red ball"])
    scheduler = DDIMScheduler.from_config(dict(stage.scheduler))
    scheduler.set_timesteps(stage.num_inference_steps)
    x = torch.stack([stage_noise(5, "base", f, (3, 16, 16)) for f in range(4)]).transpose(0, 1)[None]
    for t in scheduler.timesteps:
        with torch.inference_mode():
            without, with_text = networks.model.network("base")(
                x.expand(2, -1, -1, -1, -1), t.expand(2).float(), text, fps=torch.tensor([4.0, 4.0])
            )
        x = scheduler.step((without + 3.0 * (with_text - without))[None], t, x).prev_sample
    wanted = ((x[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    assert np.abs(made.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_change_no_byte(workers: int, small_generator: Path, reference) -> None:
    with Generator.from_pretrained(small_generator, workers=workers) as several:
        made = several.generate(PARAMS)
    assert made.report.frames_sha256 == reference.report.frames_sha256
    assert made.report.workers == workers


def test_a_killed_worker_changes_no_byte(small_generator: Path, reference) -> None:
    with Generator.from_pretrained(small_generator, workers=2) as several:
        killed = []

        def kill(progress) -> None:
            if progress.stage == "super_resolution" and not killed:
                process = next(iter(several._computer._executor._processes.values()))
                killed.append(process.pid)
                process.kill()

        made = several.generate(PARAMS, on_progress=kill)
        again = several.generate(PARAMS)
    assert killed
    assert made.report.lost_workers
    assert made.report.frames_sha256 == reference.report.frames_sha256
    assert not again.report.lost_workers


def test_offload_changes_no_byte(small_generator: Path, reference) -> None:
    with Generator.from_pretrained(small_generator, offload=True) as one_at_a_time:
        assert one_at_a_time.generate(PARAMS).report.frames_sha256 == reference.report.frames_sha256


def test_a_stopped_job_goes_on_with_the_same_bytes(generator: Generator, reference, tmp_path: Path) -> None:
    out, cancel, seen = tmp_path / "clip.mp4", threading.Event(), itertools.count()

    def stop(progress) -> None:
        if progress.stage == "super_resolution_2" and next(seen) == 8:
            cancel.set()

    with pytest.raises(Cancelled):
        generator.generate_file(out, PARAMS, on_progress=stop, cancel=cancel)
    assert not out.exists()
    stages = set()
    report = generator.generate_file(
        out, PARAMS, resume=True, preview=tmp_path / "first.png", on_progress=lambda p: stages.add(p.stage)
    )
    assert (tmp_path / "first.png").exists()
    assert report.resumed_frames == 8
    assert "base" not in stages
    assert report.frames_sha256 == reference.report.frames_sha256
    assert not list(tmp_path.glob("*.job"))
    assert probe(out).num_frames == 11
    assert probe(out).frame_rate == 12


def test_a_longer_clip_blends_its_windows(generator: Generator) -> None:
    made = generator.generate(GenerateParams("a red ball", num_frames=9, fps=4, size=16, seed=5))
    assert made.frames.shape == (9, 16, 16, 3)
    again = generator.generate(GenerateParams("a red ball", num_frames=9, fps=4, size=16, seed=5))
    assert made.report.frames_sha256 == again.report.frames_sha256


def test_the_first_frame_is_the_picture(generator: Generator, tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :, 0] = 200
    Image.fromarray(picture).save(tmp_path / "start.png")
    params = GenerateParams("a red ball", num_frames=4, fps=4, size=16, image=tmp_path / "start.png")
    frames = generator.generate(params).frames
    assert np.abs(frames[0].astype(int) - [200, 0, 0]).max() <= 1
    assert np.abs(frames[3].astype(int) - [200, 0, 0]).max() > 10


def test_preview_and_report_are_written(generator: Generator, tmp_path: Path) -> None:
    out, preview, report = (tmp_path / name for name in ("clip.mkv", "first.png", "report.json"))
    generator.generate_file(out, PARAMS, preview=preview, report=report)
    assert Image.open(preview).size[1] == 16
    told = json.loads(report.read_text())
    assert told["num_frames"] == 11
    assert told["params"]["num_inference_steps"] == 3
    assert len(list(read_frames(probe(out), 0, 11))) == 11


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"size": 50}, "size = 50 is none that the stages make; choose one of 16x16, 32x32, 64x64"),
        ({"fps": 240}, "fps = 240 is more than can be made"),
        ({"num_frames": 0}, "num_frames = 0 is not possible"),
        ({"image": "missing.png"}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(params, sentence: str, generator: Generator) -> None:
    with pytest.raises(InputError, match=sentence):
        generator.generate(GenerateParams("a red ball", **params))


def test_noise_of_another_shape_is_refused(generator: Generator) -> None:
    with pytest.raises(InputError, match=r"latents = \[5, 4, 16, 16\] have the wrong shape; give \[5, 3, 16, 16\]"):
        generator.generate(PARAMS, latents=torch.zeros(5, 4, 16, 16))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        GenerateParams("  ")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop(0), "must begin with its only base stage"),
        (lambda s: s[1].update(times=0), "times = 0"),
        (lambda s: s[1].update(name="base"), "gives a name to two stages"),
        (lambda s: s[1].update(network="../base"), "is no folder"),
        (lambda s: s[1].update(colour="red"), "'colour', which is none of"),
    ],
)
def test_a_wrong_cascade_is_refused(change, sentence: str, small_generator: Path, tmp_path: Path) -> None:
    told = json.loads((small_generator / "cascade.json").read_text())
    change(told["stages"])
    (tmp_path / "cascade.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=sentence):
        Cascade.read(tmp_path)


def test_an_early_look_at_a_stage_is_gone_on_from(small_generator: Path, generator: Generator, tmp_path: Path) -> None:
    """Stopped after the base stage and gone on from its file: the bytes of one go."""
    whole = generator.generate_file(tmp_path / "whole.mp4", PARAMS)
    kept = tmp_path / "base.safetensors"
    early = replace(PARAMS, num_frames=5, stages="base")
    look = generator.generate_file(tmp_path / "look.mp4", early, keep_stage=kept)
    assert (look.num_frames, look.width, [stage["name"] for stage in look.stages]) == (5, 16, ["base"])
    ran: list[str] = []
    later = tmp_path / "later.mp4"
    generator.generate_file(later, PARAMS, from_stage=kept, on_progress=lambda told: ran.append(told.stage))
    assert later.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert whole.frames_sha256 == generator.generate(PARAMS).report.frames_sha256
    assert "base" not in ran
    with pytest.raises(InputError, match="holds 5 frames .* but the clip needs 6 frames"):
        generator.generate_file(later, replace(PARAMS, num_frames=14), from_stage=kept)
    with pytest.raises(InputError, match="cannot be read"):
        generator.generate_file(later, PARAMS, from_stage=tmp_path / "whole.mp4")
    with pytest.raises(InputError, match="choose one of base, interpolation"):
        generator.generate(replace(PARAMS, stages="later"))


@pytest.mark.parametrize("frames", [8, 11])
def test_a_stage_is_kept_whole_by_a_job_that_goes_on(
    frames: int, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first part, and stopped when nothing but the file was missing."""
    whole, out, kept = tmp_path / "whole.mp4", tmp_path / "out.mp4", [tmp_path / f"{n}.safetensors" for n in (1, 2)]
    generator.generate_file(whole, PARAMS, keep_stage=kept[0])
    written, write = [], VideoWriter.write

    def stop(self: VideoWriter, part: np.ndarray) -> None:
        write(self, part)
        written.append(len(part))
        if sum(written) >= frames:
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        generator.generate_file(out, PARAMS)
    monkeypatch.undo()
    report = generator.generate_file(out, PARAMS, resume=True, keep_stage=kept[1])
    assert report.resumed_frames == frames
    assert out.read_bytes() == whole.read_bytes()
    first, again = (load_file(file)["frames"] for file in kept)
    assert first.shape == (13, 3, 64, 64)
    assert torch.equal(first, again)


def test_stochastic_samplers_are_functions_of_the_seed(generator: Generator) -> None:
    ddim, *others = (
        [generator.generate(replace(PARAMS, sampler=sampler, size=16, seed=seed)).frames for seed in (5, 5, 6)]
        for sampler in ("ddim", "ddpm", "ddim_stochastic")
    )
    for first, again, other in others:
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert not np.array_equal(first, ddim[0])


def test_oscillating_guidance_is_low_at_every_second_step(generator: Generator) -> None:
    assert [scale_at(step, 9.0, 1.0, 2) for step in range(6)] == [9.0, 9.0, 1.0, 9.0, 1.0, 9.0]
    small = replace(PARAMS, size=16, num_frames=4, fps=4)
    constant = generator.generate(small).frames
    assert np.array_equal(constant, generator.generate(replace(small, guidance_low=3.0)).frames)
    assert np.array_equal(constant, generator.generate(replace(small, guidance_low=1.0, guidance_high_steps=3)).frames)
    assert not np.array_equal(constant, generator.generate(replace(small, guidance_low=1.0)).frames)


def test_guidance_of_one_computes_no_second_branch(small_generator: Path) -> None:
    networks = CascadeNetworks(small_generator, torch.device("cpu"), torch.float32)
    stage = networks.cascade.base
    text, x = networks.encode_text(["", "a red ball"]), torch.randn(4, 3, 16, 16)
    sizes = []
    networks.model.network("base").register_forward_pre_hook(lambda _network, inputs: sizes.append(len(inputs[0])))
    for scale in (1.0, 2.0):
        networks.predict_base(replace(stage, guidance_scale=scale), 0, x, 4.0, text)
    assert sizes == [1, 2]
    assert len(schedule_of(stage)) == 3
    assert Fraction(stage.fps) == 4
