"""Cascades as Imagen Video has them: repeated frames denoised, noise added to what is taken, text in every stage."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fairy.export.bases.video_unet import VideoUNet
from fairy.kernels.errors import InputError
from fairy.runtime.cli.main import app
from fairy.runtime.denoise.noise import INITIAL
from fairy.runtime.generation.cascade import Cascade
from fairy.runtime.generation.counts import count_clip
from fairy.runtime.generation.generator import Generator
from fairy.runtime.generation.networks import CascadeNetworks, stage_noise
from fairy.runtime.generation.params import GenerateParams, UpscaleParams
from fairy.runtime.generation.video_stages import Upscaler
from fairy.runtime.generation.windows import Window
from fairy.runtime.models import imagen_video
from tests.runtime.generation.conftest import shaken, write_generator

CPU = torch.device("cpu")
TIME = {"_class_name": "CosineLogSNR", "prediction_type": "v_prediction", "clip_sample": True}
STAGE = {
    "kind": "super_resolution",
    "network": "later",
    "scheduler": TIME,
    "num_inference_steps": 3,
    "window": 4,
    "noise": "per-frame",
    "condition_snr": 3.0,
}
PARAMS = GenerateParams("a red ball", num_frames=8, seed=3)


def later_network(seed: int, **changes: object) -> VideoUNet:
    torch.manual_seed(seed)
    how = {
        "block_out_channels": (8, 16),
        "attention": (False, True),
        "attention_head_dim": 8,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "temporal_attention": False,
        "noise_levels": True,
    }
    network = VideoUNet(condition_channels=3, patch_size=2, **{**how, **changes})
    shaken(network, seed)
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, then twice the frames, then twice the pixels; all read the text, and time is continuous."""
    where = write_generator(tmp_path_factory.mktemp("cascade"))
    later_network(7).save_pretrained(where / "later", safe_serialization=True)
    base = json.loads((where / "cascade.json").read_text())["stages"][0]
    base |= {"scheduler": TIME, "sampler": "ddpm", "guidance_low": 1.0}
    more = STAGE | {"name": "temporal", "times": 2, "sampler": "ddpm", "guidance_scale": 2.0}
    larger = STAGE | {"name": "spatial", "scale": 2, "overlap": 1, "sampler": "ddim_stochastic"}
    (where / "cascade.json").write_text(json.dumps({"stages": [base, more, larger]}))
    return where


def test_stages_keep_their_contract_and_workers_change_no_byte(folder: Path) -> None:
    shapes = [str(shape) for shape in Cascade.read(folder).shapes]
    assert shapes[1:] == ["8 frames of 16×16 at 8 frames/s", "8 frames of 32×32 at 8 frames/s"]
    with Generator.from_pretrained(folder) as one:
        made = one.generate(PARAMS)
        assert made.frames.shape == (8, 32, 32, 3)
        other = one.generate(replace(PARAMS, prompt="a blue star")).frames
    assert not (made.frames == other).all()
    with Generator.from_pretrained(folder, workers=2) as two:
        assert two.generate(PARAMS).report.frames_sha256 == made.report.frames_sha256


def test_the_text_is_read_in_the_later_stages_too(folder: Path) -> None:
    networks = CascadeNetworks(folder, CPU, torch.float32)
    stage, window = networks.cascade.stages[1], Window((0, 2), (0, 4), tuple(Fraction(i, 2) for i in range(4)))
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    texts = networks.encode_text(["", "a red ball"]), networks.encode_text(["", "a blue star"])
    first, second = (networks.super_resolve(stage, window, frames, 0, 8.0, text) for text in texts)
    assert first.shape == (4, 3, 16, 16)
    assert not torch.equal(first, second)


def test_what_a_stage_takes_is_noised_as_its_snr_says(folder: Path) -> None:
    """α² = SNR / (1 + SNR); the network is told the rest, and every repeated frame has noise of its own number."""
    networks = CascadeNetworks(folder, CPU, torch.float32)
    stage, window = networks.cascade.stages[1], Window((1, 3), (2, 6), tuple(Fraction(i, 2) for i in range(2, 6)))
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen: list[dict[str, torch.Tensor]] = []
    network = networks.model.network("later")
    network.register_forward_pre_hook(lambda _n, _a, named: seen.append(named), with_kwargs=True)
    networks.super_resolve(stage, window, frames, 9, 8.0, networks.encode_text(["", "a red ball"]))
    assert torch.equal(seen[0]["noise_level"], torch.full((2,), 0.25))
    assert torch.equal(seen[0]["fps"], torch.full((2,), 8.0))
    clean = frames.repeat_interleave(2, dim=0) * 2 - 1
    noise = torch.stack([stage_noise(9, "temporal/condition", n, (3, 16, 16), INITIAL) for n in range(2, 6)])
    wanted = 0.75**0.5 * clean + 0.25**0.5 * noise
    torch.testing.assert_close(seen[0]["condition"][0].transpose(0, 1), wanted)


def test_noise_of_every_frame_is_of_its_number_in_windows_of_one_too(folder: Path) -> None:
    networks = CascadeNetworks(folder, CPU, torch.float32)
    stage = replace(networks.cascade.stages[2], enable_time=False, condition_snr=0.0)
    frame, seen = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), []
    network = networks.model.network("later")
    network.register_forward_pre_hook(lambda _n, positional: seen.append(positional[0][:, :, 0]))
    for number in (4, 5):
        networks.super_resolve(stage, Window((number, number + 1), (number, number + 1), (Fraction(number),)), frame, 9)
    firsts = [seen[0][0], seen[len(seen) // 2][0]]
    for number, first in zip((4, 5), firsts, strict=True):
        assert torch.equal(first, stage_noise(9, "spatial", number, (3, 32, 32)))


def test_one_frame_is_a_picture_model(folder: Path) -> None:
    """With time switched off a window is its frames, each by itself: joint training on pictures and clips."""
    network = later_network(7).eval()
    inputs = {
        "sample": torch.randn(1, 3, 4, 16, 16),
        "timestep": torch.tensor([400.0]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
    }
    more = {"fps": torch.zeros(1), "condition": torch.randn(1, 3, 4, 16, 16), "noise_level": torch.tensor([0.2])}
    with torch.inference_mode():
        together = network(**inputs, **more, enable_time=False)
        sample, condition = inputs.pop("sample"), more.pop("condition")
        for frame in range(4):
            part = slice(frame, frame + 1)
            alone = network(sample[:, :, part], **inputs, condition=condition[:, :, part], **more)
            torch.testing.assert_close(alone, together[:, :, part], rtol=1e-5, atol=1e-5)


def test_upscaling_a_video_with_stages_that_read_text_needs_none(folder: Path) -> None:
    video = torch.randint(0, 255, (3, 16, 16, 3), dtype=torch.uint8).numpy()
    with Upscaler.from_pretrained(folder) as upscaler:
        stages = upscaler._networks.cascade.stages
        assert [stage.scale for stage in stages] == [1, 1, 2]
        assert upscaler.run(video, UpscaleParams()).frames.shape == (3, 32, 32, 3)


def test_a_network_that_knows_no_noise_level_is_not_given_noise(folder: Path, tmp_path: Path) -> None:
    where = write_generator(tmp_path / "deaf")
    told = json.loads((where / "cascade.json").read_text())
    told["stages"][2]["condition_snr"] = 3.0
    (where / "cascade.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="super_resolution .* knows no noise level"):
        Generator.from_pretrained(where)


def test_the_papers_cascade_is_described_and_counted() -> None:
    """Frames, sizes and rates of figure 6 of the paper, and parameters within a tenth of its."""
    stages = count_clip(imagen_video(), GenerateParams("a video"), torch.float16)
    assert [stage.makes for stage in stages] == [
        "16 frames of 40×24 at 3 frames/s",
        "32 frames of 40×24 at 6 frames/s",
        "32 frames of 80×48 at 6 frames/s",
        "32 frames of 320×192 at 6 frames/s",
        "64 frames of 320×192 at 12 frames/s",
        "128 frames of 320×192 at 24 frames/s",
        "128 frames of 1280×768 at 24 frames/s",
    ]
    papers = (5600, 1700, 1400, 1200, 780, 630, 340)
    for stage, millions in zip(stages, papers, strict=True):
        assert stage.parameters / 1e6 == pytest.approx(millions, rel=0.1)
    assert [stage.calls for stage in stages] == [256, 128, 128, 128, 128, 128, 128 * 128]


def test_counts_are_what_the_counter_counts(folder: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # the counter knows no fused attention of the CPU's
    with Generator.from_pretrained(folder) as generator, sdpa_kernel(SDPBackend.MATH):
        generator.generate(replace(PARAMS, stages="base", num_frames=4))  # the text is encoded before
        counter = FlopCounterMode(display=False)
        text = FlopCounterMode(display=False)
        with text:
            generator._networks.encode_text(["", "a red ball"])
        with counter:
            generator.generate(PARAMS)
    stages = count_clip(folder, PARAMS, torch.float32)
    counted = 1e12 * sum(stage.tflop for stage in stages)
    assert counted == pytest.approx(counter.get_total_flops() - text.get_total_flops(), rel=1e-6)


def test_frames_between_are_counted_as_they_are_computed(small_generator: Path) -> None:
    """Ten frames of four are three pairs of neighbours; the last frame is held."""
    stages = count_clip(small_generator, GenerateParams("a red ball"), torch.float32)
    assert [stage.calls for stage in stages] == [3, 3, 4, 10]


def test_a_description_without_weights_is_counted_and_not_run() -> None:
    run = CliRunner()
    how = ["generate", "a video", "-o", "out.mp4", "--model", "imagen-video"]
    method = ["generate", "a video", "-o", "out.mp4", "--method", "imagen_video"]
    told = run.invoke(app, [*method, "--dry-run", "--stages", "spatial_1"])
    assert told.exit_code == 0
    assert "spatial_1" in told.output
    assert "Nothing was made." in told.output
    refused = run.invoke(app, how)
    assert refused.exit_code != 0
    assert isinstance(refused.exception, InputError)
    assert "without weights" in str(refused.exception)
