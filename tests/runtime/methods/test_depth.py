"""Depth-conditioned models: what they see, what their frames begin with, and whole edits by Pix2Video."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fairy.export.checkpoint import load_checkpoint
from fairy.runtime import Editor, EditParams, InputError
from fairy.runtime.cli.main import run
from fairy.runtime.inputs.captions import caption
from fairy.runtime.inputs.depth import DepthFolder, estimated, from_map, normalised
from fairy.runtime.plan.geometry import make_geometry
from fairy.runtime.plan.plan import plan_edit
from fairy.runtime.record.progress import Monitor
from tests.conftest import SCHEDULER
from tests.runtime.methods.conftest import write_small
from tests.runtime.methods.reference import edit_frame_after_frame

# Stable Diffusion 2's own: PNDM in its configuration, linear projections, another number of heads a level.
SD2 = {"in_channels": 5, "use_linear_projection": True, "attention_head_dim": (1, 4)}
PARAMS = {"method": "pix2video", "num_inference_steps": 3, "guidance_scale": 4.0}


def write_dpt(folder: Path) -> None:
    """A random DPT, in the folders that a model has for it."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(6)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 8, 8],
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=8,
        is_hybrid=False,
        backbone_config=None,
    )
    DPTForDepthEstimation(config).save_pretrained(folder / "depth_estimator")
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "feature_extractor")


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the layout of Stable Diffusion 2's depth model."""
    folder = write_small(tmp_path_factory.mktemp("depth") / "sd2", **SD2)
    scheduler = SCHEDULER | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
    import json

    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    write_dpt(folder)
    return folder


@pytest.fixture(scope="module")
def depth_editor(depth_folder: Path):
    with Editor.from_pretrained(depth_folder, device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six maps in three formats: 16 bit and 8 bit PNG, and arrays."""
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(3)
    for i in range(6):
        values = rng.integers(0, 60000, (24, 40))
        if i % 3 == 0:
            Image.fromarray(values.astype(np.uint16)).save(folder / f"{i + 8}.png")
        elif i % 3 == 1:
            Image.fromarray((values // 256).astype(np.uint8)).save(folder / f"{i + 8}.png")
        else:
            np.save(folder / f"{i + 8}.npy", values.astype(np.float32) / 60000)
    return folder


def test_maps_are_read_in_natural_order(maps: Path) -> None:
    found = DepthFolder.open(maps, num_frames=6, max_pixels=960)
    assert [file.stem for file in found.files] == ["8", "9", "10", "11", "12", "13"]
    values = np.random.default_rng(3).integers(0, 60000, (24, 40))
    assert np.array_equal(found.read(0)[0, 0].numpy(), values.astype(np.float32))
    assert 0 < float(found.read(2).max()) <= 1


def test_every_frame_is_stretched_to_minus_one_and_one() -> None:
    depth = torch.tensor([[[[2.0, 4.0], [3.0, 6.0]]], [[[5.0, 5.0], [5.0, 5.0]]]])
    expected = torch.tensor([[[[-1.0, 0.0], [-0.5, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    assert torch.equal(normalised(depth), expected)
    ramp = torch.arange(40.0).expand(24, 40)[None, None]
    seen = from_map(ramp, make_geometry(24, 40, long_side=40, upscale=False, multiple=16), (4, 6))
    assert seen.shape == (1, 1, 4, 6)
    assert (seen.min(), seen.max()) == (-1, 1)
    assert (seen[..., 1:5] > seen[..., 0:4]).all()  # the last columns are the reflected padding


def test_estimated_depth_is_what_diffusers_pipeline_prepares(depth_folder: Path) -> None:
    from diffusers import StableDiffusionDepth2ImgPipeline as Pipeline

    checkpoint = load_checkpoint(depth_folder)
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    plain = SimpleNamespace(
        feature_extractor=checkpoint.depth_processor, depth_estimator=checkpoint.depth_estimator, vae_scale_factor=8
    )
    with torch.no_grad():
        arguments = ([Image.fromarray(picture)], None, 1, False, torch.float32, torch.device("cpu"))
        expected = Pipeline.prepare_depth_map(plain, *arguments)
        found = estimated(checkpoint, torch.from_numpy(picture).permute(2, 0, 1)[None].float(), (4, 6))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_whole_edit_is_inversion_and_then_frame_after_frame(
    depth_editor: Editor, depth_folder: Path, short: np.ndarray, maps: Path
) -> None:
    """Against diffusers' inverse scheduler and the plain loops, from the same image latents to the last latents."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    frames = short[:, :16, :32]  # needs no padding
    params = EditParams("make it red", **PARAMS, source_prompt="a field", depth=maps, negative_prompt="blue")
    kept: list[torch.Tensor] = []
    decode = depth_editor._networks.decode
    depth_editor._networks.decode = lambda run, latents: (kept.append(latents.clone()), decode(run, latents))[1]
    try:
        depth_editor.edit(frames, params)
    finally:
        del depth_editor._networks.decode
    checkpoint = load_checkpoint(depth_folder)
    config = SCHEDULER | {"clip_sample": False, "set_alpha_to_one": False}
    backwards, scheduler = DDIMInverseScheduler.from_config(config), DDIMScheduler.from_config(config)
    backwards.set_timesteps(3)
    scheduler.set_timesteps(3)
    geometry = make_geometry(16, 32, long_side=512, upscale=False, multiple=16)
    opened = DepthFolder.open(maps, num_frames=6, max_pixels=1 << 20)
    depth = torch.cat([from_map(opened.read(i), geometry, (2, 4)) for i in range(6)])
    with torch.no_grad():
        source, prompt, null = (_text(checkpoint, text) for text in ("a field", "make it red", "blue"))
        pictures = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2) / 127.5 - 1.0
        x = checkpoint.vae.encode(pictures).latent_dist.mode() * checkpoint.vae.config.scaling_factor
        for t in backwards.timesteps:
            text = source.expand(6, -1, -1)
            out = checkpoint.unet(torch.cat([x, depth], 1), t, encoder_hidden_states=text).sample
            x = backwards.step(out, t, x).prev_sample
        expected = edit_frame_after_frame(
            checkpoint.unet.double(),
            scheduler,
            lambda i: (0, i - 1) if i else (),
            own=False,
            noise=x.double(),
            conditions=depth.double(),
            texts=(prompt[0].double(), null[0].double()),
            scale=4.0,
            delta=100.0 * 4 * 2 * 4 / (4 * 64 * 64),  # the same pull at every size
            update_steps=2,
        )
    torch.testing.assert_close(torch.cat(kept), expected.float(), atol=2e-4, rtol=2e-4)


def _text(checkpoint, text: str) -> torch.Tensor:
    length = checkpoint.tokenizer.model_max_length
    ids = checkpoint.tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return checkpoint.text_encoder(ids.input_ids)[0]


def test_the_usual_settings_of_a_depth_model(depth_folder: Path, short: np.ndarray) -> None:
    checkpoint = load_checkpoint(depth_folder)
    assert checkpoint.condition == "depth"
    params = EditParams("x", method="pix2video")
    plan = plan_edit(checkpoint, short, params, Monitor(), latents=None, precision=torch.float32)
    assert checkpoint.usual
    assert checkpoint.usual.items() <= plan.params.to_json().items()
    assert len(plan.schedule) == 50
    assert plan.params.update_steps == 25
    assert plan.schedule.clip is None
    assert plan.schedule.alphas[-1][1] < 1.0
    assert plan.guidance.branches == (0, 1)
    assert plan.guidance.guidance_scale == 7.5


def test_depth_is_estimated_where_none_is_given(depth_editor: Editor, short: np.ndarray, maps: Path) -> None:
    estimate = depth_editor.edit(short, EditParams("make it red", **PARAMS))
    given = depth_editor.edit(short, EditParams("make it red", **PARAMS, depth=maps))
    assert not np.array_equal(estimate.frames, given.frames)
    assert {"depth", "invert"} <= set(estimate.report.times_ms)
    other = depth_editor.edit(short, EditParams("make it red", **PARAMS, depth=maps, source_prompt="a red field"))
    assert not np.array_equal(other.frames, given.frames)
    noise = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(0))
    from_noise = depth_editor.edit(short, EditParams("make it red", **PARAMS, depth=maps), latents=noise)
    assert "invert" not in from_noise.report.times_ms


def test_what_does_not_fit_is_refused(depth_editor: Editor, short: np.ndarray, maps: Path, tmp_path: Path) -> None:
    def refused(match: str, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            depth_editor.edit(short, EditParams("x", **{**PARAMS, **options}))

    refused(
        "sees depth instead of the picture, which the method fairy does not serve; choose pix2video", method="fairy"
    )
    refused("image_guidance_scale = 1.5 does not fit", image_guidance_scale=1.5)
    refused("sampler = 'euler' does not fit", sampler="euler")
    refused("is not a folder", depth=tmp_path / "none")
    (tmp_path / "maps").mkdir()
    refused(r"has 0 depth maps \(.png or .npy\) for 6 frames", depth=tmp_path / "maps")
    for i in range(6):
        (tmp_path / "maps" / f"{i}.png").write_bytes(b"no picture")
    refused("0.png is not a readable depth map", depth=tmp_path / "maps")
    for i in range(6):
        (tmp_path / "maps" / f"{i}.png").unlink()
        np.save(tmp_path / "maps" / f"{i}.npy", np.full((4, 4), np.nan))
    refused("one finite value a pixel", depth=tmp_path / "maps")
    np.save(tmp_path / "maps" / "0.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused("0.npy is not a readable depth map", depth=tmp_path / "maps")


def test_captions_need_their_weights(depth_editor: Editor, short: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="source_prompt = 'auto' needs nobody/captions on this machine"):
        caption(short[0], "nobody/captions")


def test_the_first_frame_is_captioned(depth_editor: Editor, short, maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairy.runtime.inputs import beginnings

    asked: list[np.ndarray] = []
    monkeypatch.setattr(beginnings, "caption", lambda frame: asked.append(frame) or "a red field")
    found = depth_editor.edit(short, EditParams("make it red", **PARAMS, depth=maps, source_prompt="auto"))
    plain = depth_editor.edit(short, EditParams("make it red", **PARAMS, depth=maps, source_prompt="a red field"))
    assert np.array_equal(found.frames, plain.frames)
    assert len(asked) == 1
    assert np.array_equal(asked[0], short[0])
    assert any("captioned 'a red field'" in note for note in found.report.notes)


def test_the_command_line(depth_folder: Path, short, maps: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out.mp4"
    source.mkdir()
    for i, frame in enumerate(short):
        Image.fromarray(frame).save(source / f"{i}.png")
    words = ["edit", str(source), "make it red", "-o", str(out), "--model", str(depth_folder), "--device", "cpu"]
    words += ["--method", "pix2video", "--steps", "2", "--quiet", "--fps", "10", "--depth", str(maps)]
    assert run([*words, "--source-prompt", "a field"]) == 0
    assert out.exists()


def test_masks_and_strengths(depth_editor: Editor, short: np.ndarray, tmp_path: Path) -> None:
    """Outside of a mask frames are the source's; at strength 0 they are the source through the autoencoder."""
    white = np.zeros(short.shape[1:3], np.uint8)
    white[:, : white.shape[1] // 2] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    changes = {"method": "pix2video", "num_inference_steps": 2, "source_prompt": "a field"}
    masked = depth_editor.edit(
        short, EditParams("snow", mask=tmp_path / "mask.png", mask_feather=0, strength=0.5, **changes)
    )
    assert np.array_equal(masked.frames[:, white == 0], short[:, white == 0])
    assert not np.array_equal(masked.frames, short)
    nothing = depth_editor.edit(short, EditParams("snow", strength=0.0, **changes)).frames
    networks = depth_editor._networks
    run = depth_editor._open(short, EditParams("snow", **changes), Monitor(None, None), None, None)
    with torch.inference_mode():
        through = networks.decode(run, networks.as_edited(networks.encode(run, list(short))))
    assert np.array_equal(nothing, np.stack(through))
