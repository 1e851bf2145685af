"""ControlNets and T2I adapters guide an edit as in diffusers; a scale of 0 is none, whoever computes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairy.engines.store.key import weights_digest
from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.inputs.conditions import condition_of
from fairy.runtime.inputs.depth import estimated
from fairy.runtime.plan.controls import ControlUse
from fairy.runtime.plan.geometry import make_geometry
from fairy.runtime.record.progress import Monitor
from tests.conftest import make_adapter, make_controlnet
from tests.families.folders import write_dreamlite, write_klein
from tests.runtime.conftest import make_frames, write_clip
from tests.runtime.methods.test_depth import write_dpt

FRAMES = make_frames(5, 64, 128)
GUIDES = make_frames(5, 64, 128, seed=3)
QUICK = {"num_inference_steps": 2, "anchors": 2, "micro_batch": 2}


def params(**changes: object) -> EditParams:
    return EditParams("make it red", **{**QUICK, **changes})


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("controls")
    made = {"net": make_controlnet(), "wide": make_controlnet(seed=9, in_channels=8), "adapter": make_adapter()}
    for name, network in made.items():
        network.save_pretrained(folder / name)
    write_clip(folder / "guide.mp4", GUIDES, sound=False)
    return {**{name: folder / name for name in made}, "video": folder / "guide.mp4"}


@pytest.fixture(scope="module")
def guided(checkpoint_folder: Path, controls: dict[str, Path]) -> Iterator[Editor]:
    """An editor with one ControlNet."""
    with Editor.from_pretrained(checkpoint_folder, device="cpu", controlnet=f"{controls['net']}:0.7") as made:
        yield made


@pytest.fixture(scope="module")
def all_of_them(checkpoint_folder: Path, controls: dict[str, Path]) -> Iterator[Editor]:
    named = [(controls[name], scale) for name, scale in (("net", 0.7), ("adapter", 0.5), ("wide", 0.3))]
    with Editor.from_pretrained(checkpoint_folder, device="cpu", controlnet=named) as made:
        yield made


def diffusers_edit(folder: Path, frame: np.ndarray, latents: torch.Tensor, guides: list[tuple]) -> np.ndarray:
    """One frame by diffusers' networks and scheduler: guides are (network, scale, picture [1, 3, H, W])."""
    import diffusers

    pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(folder)
    scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(2)
    ids = pipe.tokenizer(["make it red", "blue"], padding="max_length", return_tensors="pt").input_ids
    wanted, unwanted = pipe.text_encoder(ids)[0]
    text = torch.stack([wanted, unwanted, unwanted])
    picture = torch.from_numpy(frame).permute(2, 0, 1).float()[None] / 127.5 - 1
    image = pipe.vae.encode(picture).latent_dist.mode()
    beside = torch.cat([image, image, torch.zeros_like(image)])
    x = latents[None] * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t).repeat(3, 1, 1, 1)
        sample, more = torch.cat([scaled, beside], 1), {}
        for network, scale, seen in guides:
            if isinstance(network, diffusers.T2IAdapter):
                more["down_intrablock_additional_residuals"] = [scale * f.repeat(3, 1, 1, 1) for f in network(seen)]
                continue
            given = sample if network.config.in_channels == 8 else scaled
            down, mid = network(given, t, text, seen.repeat(3, 1, 1, 1), scale, return_dict=False)
            if "mid_block_additional_residual" in more:
                mid = mid + more["mid_block_additional_residual"]
                down = [a + b for a, b in zip(more["down_block_additional_residuals"], down, strict=True)]
            more |= {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        e1, e2, e3 = pipe.unet(sample, t, text, return_dict=False, **more)[0]
        x = scheduler.step((e3 + 1.5 * (e2 - e3) + 7.5 * (e1 - e2))[None], t, x, return_dict=False)[0]
    out = pipe.vae.decode(x / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return ((out[0] / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()


@torch.no_grad()
def test_one_guides_as_in_diffusers(guided: Editor, checkpoint_folder: Path) -> None:
    import cv2

    latents = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(3))
    asked = params(anchors=0, sampler="euler", negative_prompt="blue", control="canny")
    ours = guided.edit(FRAMES[:2], asked, latents=latents).frames
    plain = guided.edit(
        FRAMES[:2],
        params(anchors=0, sampler="euler", negative_prompt="blue", controlnet_conditioning_scale=0),
        latents=latents,
    ).frames
    for frame, found, other in zip(FRAMES, ours, plain, strict=False):
        edges = torch.from_numpy(cv2.Canny(frame, 100, 200)).float().expand(1, 3, -1, -1) / 255
        assert edges.any()
        theirs = diffusers_edit(checkpoint_folder, frame, latents, [(make_controlnet(), 0.7, edges)])
        assert np.abs(theirs - found).max() < 1
        assert np.abs(theirs - other).max() > 3


@torch.no_grad()
def test_several_guide_as_in_diffusers(all_of_them: Editor, checkpoint_folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    latents = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(3))
    Image.fromarray(GUIDES[0]).save(tmp_path / "guide.png")
    asked = params(anchors=0, sampler="euler", negative_prompt="blue", control=[str(tmp_path / "guide.png")] * 3)
    (ours,) = all_of_them.edit(FRAMES[:1], asked, latents=latents).frames
    seen = torch.from_numpy(GUIDES[0]).permute(2, 0, 1).float()[None] / 255
    made = [make_controlnet(), make_adapter(), make_controlnet(seed=9, in_channels=8)]
    guides = [(network, scale, seen) for network, scale in zip(made, (0.7, 0.5, 0.3), strict=True)]
    assert np.abs(diffusers_edit(checkpoint_folder, FRAMES[0], latents, guides) - ours).max() < 1


def test_a_scale_of_0_is_none(guided: Editor, all_of_them: Editor, editor: Editor, controls: dict[str, Path]) -> None:
    plain = editor.edit(FRAMES, params()).frames
    assert np.array_equal(all_of_them.edit(FRAMES, params(controlnet_conditioning_scale=0)).frames, plain)
    usual = guided.edit(FRAMES, params(control="canny"))
    one = params(control=("canny", "canny", "canny"), controlnet_conditioning_scale=(0.7, 0, 0))
    assert np.array_equal(all_of_them.edit(FRAMES, one).frames, usual.frames)
    assert not np.array_equal(usual.frames, plain)
    never = params(control="canny", control_guidance_start=0.6)  # of two steps neither begins there and ends by 1
    assert np.array_equal(guided.edit(FRAMES, never).frames, plain)
    half = guided.edit(FRAMES, params(control="canny", control_guidance_end=0.5)).frames
    assert not np.array_equal(half, plain)
    assert not np.array_equal(half, usual.frames)


def test_anchors_are_guided_too(guided: Editor) -> None:
    """An anchor's edit depends on what is seen of it; other frames follow by what is seen of the anchors."""
    sources = FRAMES.copy()
    before = guided.edit(sources, params(control="canny", anchors=[1])).frames
    assert not np.array_equal(
        before[1], guided.edit(sources, params(controlnet_conditioning_scale=0, anchors=[1])).frames[1]
    )


def test_the_users_own_video(guided: Editor, controls: dict[str, Path], tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", FRAMES)
    seen = guided.edit(clip, params(control=controls["video"], anchors=[1]))
    assert not np.array_equal(seen.frames, guided.edit(clip, params(control="canny", anchors=[1])).frames)
    part = guided.edit(clip, params(control=controls["video"], anchors=[0], start=0.04)).frames
    assert np.array_equal(part[0], seen.frames[1])
    with pytest.raises(InputError, match="5 pictures for 4 frames"):
        guided.edit(FRAMES[:4], params(control=controls["video"]))
    (told,) = seen.report.controls
    assert told["digest"] == weights_digest(guided._networks.checkpoint, "control_0")
    assert (told["kind"], told["scale"], told["sees"]) == ("controlnet", 0.7, str(controls["video"]))
    guided.warm_up(64, 128, params(control=controls["video"]))


def test_a_changed_control_is_another_edit(guided: Editor, all_of_them: Editor) -> None:
    def identity(editor: Editor, asked: EditParams) -> object:
        return editor._identity(editor._open(FRAMES, asked, Monitor(None, None), None, None).plan)["controls"]

    asked = params(control="canny")
    three = params(control=["canny"] * 3)
    one, others = identity(guided, asked), identity(all_of_them, three)
    assert [len(one), len(others)] == [1, 3]
    assert one[0]["digest"] != others[1]["digest"]
    assert identity(guided, params(controlnet_conditioning_scale=0)) == []


@pytest.mark.parametrize("changes", [{"shots": (3,)}, {"continue_look": True, "shots": (3,)}, {"method": "pix2video"}])
def test_with_other_options(guided: Editor, changes: dict) -> None:
    asked = {"anchors": None, "micro_batch": None} if "method" in changes else {}
    result = guided.edit(FRAMES, params(control="canny", **asked, **changes)).frames
    plain = guided.edit(FRAMES, params(controlnet_conditioning_scale=0, **asked, **changes)).frames
    assert not np.array_equal(result, plain)


def test_a_mask_and_what_is_seen_do_not_mix(guided: Editor, controls: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    white = np.full((64, 128), 255, np.uint8)
    Image.fromarray(white).save(tmp_path / "white.png")
    asked = {"control": controls["video"], "anchors": [1]}
    masked = guided.edit(FRAMES, params(mask=tmp_path / "white.png", **asked)).frames
    assert np.array_equal(masked, guided.edit(FRAMES, params(**asked)).frames)


def test_what_is_seen_is_scaled_and_padded_as_the_frame_is() -> None:
    geometry = make_geometry(52, 70, long_side=35, upscale=False, multiple=64)
    picture = np.concatenate([np.zeros((52, 70, 4), np.uint8), make_frames(1, 52, 70)[0]], axis=2)
    use = ControlUse(0, "controlnet", "video.mp4", 1.0, 4)
    found = condition_of(None, use, picture, geometry, torch.device("cpu"))
    assert tuple(found.shape) == (1, 3, 64, 64)
    assert torch.equal(found[..., :26, 35:64], found[..., :26, 5:34].flip(-1))
    edges = condition_of(
        None, ControlUse(0, "controlnet", "canny", 1.0, None), picture[..., 4:], geometry, torch.device("cpu")
    )
    assert set(edges.unique().tolist()) == {0.0, 1.0}


def test_what_is_missing_is_told(guided: Editor, all_of_them: Editor, editor: Editor) -> None:
    with pytest.raises(InputError, match="control names 0 of what 1"):
        guided.edit(FRAMES, params())
    with pytest.raises(InputError, match="2 numbers for 3 controls"):
        all_of_them.edit(FRAMES, params(control=["canny"] * 3, controlnet_conditioning_scale=(1, 2)))
    with pytest.raises(InputError, match="control belongs to a ControlNet"):
        editor.edit(FRAMES, params(control="canny"))
    with pytest.raises(InputError, match="needs a depth estimator"):
        guided.edit(FRAMES, params(control="depth"))
    with pytest.raises(InputError, match="control_guidance_end = 0.2 must be more than"):
        params(control="canny", control_guidance_start=0.5, control_guidance_end=0.2)


def test_other_families_refuse_them_in_one_sentence(tmp_path: Path, controls: dict[str, Path]) -> None:
    klein = write_klein(tmp_path / "klein")
    for name, value in {"controlnet": controls["net"], "ip_adapter": tmp_path, "depth_estimator": tmp_path}.items():
        with pytest.raises(InputError, match=f"{name} = .* does not fit a model of Flux2KleinPipeline; leave it out"):
            Editor.from_pretrained(klein, device="cpu", **{name: value})
    with Editor.from_pretrained(klein, device="cpu") as other:
        for name, value in {"control": "canny", "style": "look.png"}.items():
            with pytest.raises(InputError, match=f"{name} = .* is for models of Stable Diffusion's class, which"):
                other.edit(FRAMES, params(**{name: value}))


def test_masks_are_everybodys(tmp_path: Path) -> None:
    mask = np.zeros((64, 128), np.uint8)
    mask[16:48, 32:96] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for folder in (write_klein(tmp_path / "klein"), write_dreamlite(tmp_path / "dreamlite")):
        with Editor.from_pretrained(folder, device="cpu") as other:
            frames = other.edit(FRAMES, params(mask=tmp_path / "mask.png", mask_feather=0)).frames
        assert np.array_equal(frames[:, mask == 0], FRAMES[:, mask == 0])
        assert not np.array_equal(frames, FRAMES)


def test_depth_by_a_given_estimator(checkpoint_folder: Path, controls: dict[str, Path], tmp_path: Path) -> None:
    write_dpt(tmp_path / "dpt")
    folder = tmp_path / "dpt" / "depth_estimator"
    for file in (tmp_path / "dpt" / "feature_extractor").iterdir():
        file.rename(folder / file.name)
    named = {"controlnet": controls["net"], "depth_estimator": folder}
    with Editor.from_pretrained(checkpoint_folder, device="cpu", **named) as made:
        checkpoint, geometry = (
            made._networks.checkpoint,
            make_geometry(64, 128, long_side=512, upscale=False, multiple=64),
        )
        use = ControlUse(0, "controlnet", "depth", 1.0, None)
        found = condition_of(checkpoint, use, FRAMES[0], geometry, torch.device("cpu"))
        picture = torch.from_numpy(FRAMES[0]).permute(2, 0, 1).float()[None]
        expected = estimated(checkpoint, picture, (64, 128)) / 2 + 0.5
        assert torch.equal(found, expected.expand(-1, 3, -1, -1))
        assert (float(found.min()), float(found.max())) == (0.0, 1.0)
        result = made.edit(FRAMES[:2], params(control="depth", num_inference_steps=1)).frames
        assert not np.array_equal(result, made.edit(FRAMES[:2], params(control="canny", num_inference_steps=1)).frames)
    with pytest.raises(InputError, match="of the kind None, not dpt"):
        Editor.from_pretrained(checkpoint_folder, device="cpu", depth_estimator=controls["net"])


@pytest.mark.nightly
def test_built_engines_edit_as_eager_does(tmp_path: Path) -> None:
    """Built by `fairy build --controlnet`, found by an editor with the same ControlNet."""
    from fairy.runtime.cli import main as cli
    from tests.export.small import tiny_model

    folder = tiny_model(tmp_path).folder
    like = {"block_out_channels": (16,), "layers_per_block": 1, "attention_head_dim": 2}
    make_controlnet(**like, down_block_types=("CrossAttnDownBlock2D",)).save_pretrained(tmp_path / "net")
    words = ["build", folder, "--controlnet", tmp_path / "net", "--quiet", "--store", tmp_path / "store"]
    assert cli.run([*map(str, words), "--backend", "onnxruntime"]) == 0
    results = {}
    for backend in ("eager", "onnxruntime"):
        named = {"backend": backend, "store": tmp_path / "store", "controlnet": tmp_path / "net", "device": "cpu"}
        with Editor.from_pretrained(folder, **named) as made:
            results[backend] = made.edit(FRAMES, params(control="canny"))
            if backend == "onnxruntime":  # what was not built for the model with its ControlNet is told
                with pytest.raises(InputError, match=f"--graphs unet_anchor --controlnet {tmp_path / 'net'}"):
                    made.edit(FRAMES, params(controlnet_conditioning_scale=0))
    difference = np.abs(results["eager"].frames.astype(int) - results["onnxruntime"].frames)
    assert difference.max() <= 1
    assert {"unet_frame_controlled", "controlnet_0"} <= set(results["onnxruntime"].report.engine_digests)
