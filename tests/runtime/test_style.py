"""A picture as a prompt (IP-Adapter) does what it does in diffusers; a scale of 0 is none, whoever computes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fairy.engines.compiled import CompiledBackend
from fairy.engines.eager import EagerBackend
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import load_checkpoint
from fairy.export.shapes import random_inputs
from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.record.progress import Monitor
from tests.conftest import TEXT_CHANNELS, make_controlnet, make_unet
from tests.runtime.conftest import make_frames

FRAMES = make_frames(4, 64, 128)
WIDTH, SIDE = 24, 32  # of the encoder's states, and of its pictures
KINDS = ("usual", "plus")


def params(**changes: object) -> EditParams:
    return EditParams("make it red", **{"num_inference_steps": 2, "anchors": 2, "micro_batch": 2, **changes})


def image_proj(kind: str) -> dict[str, torch.Tensor]:
    """Weights of the projection, by the names of the published files."""
    like = {"proj.weight": (4 * TEXT_CHANNELS, 16), "proj.bias": (4 * TEXT_CHANNELS,)}
    norms = {"norm.weight": (TEXT_CHANNELS,), "norm.bias": (TEXT_CHANNELS,)}
    if kind == "plus":
        inner, heads = 64, TEXT_CHANNELS  # heads of 64 channels
        like = {"latents": (1, 5, heads), "proj_in.weight": (heads, WIDTH), "proj_in.bias": (heads,)}
        like |= {"proj_out.weight": (TEXT_CHANNELS, heads), "proj_out.bias": (TEXT_CHANNELS,)}
        norms = {f"norm_out.{n}": (TEXT_CHANNELS,) for n in ("weight", "bias")}
        for i in range(4):
            layer = f"layers.{i}"
            for name in ("0.norm1", "0.norm2", "1.0"):
                norms |= {f"{layer}.{name}.{n}": (heads,) for n in ("weight", "bias")}
            like |= {f"{layer}.0.to_q.weight": (inner, heads), f"{layer}.0.to_kv.weight": (2 * inner, heads)}
            like |= {f"{layer}.0.to_out.weight": (heads, inner), f"{layer}.1.1.weight": (4 * heads, heads)}
            like |= {f"{layer}.1.3.weight": (heads, 4 * heads)}
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=rng) * 0.3 for name, shape in (like | norms).items()}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random IP-Adapters with their encoder, and a picture."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(11)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    config = CLIPVisionConfig(hidden_size=WIDTH, intermediate_size=32, projection_dim=16, **sizes)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    rng, weights, unet = torch.Generator().manual_seed(1), {}, make_unet()
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(layers):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for to in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * i + 1}.{to}.weight"] = torch.randn(width, TEXT_CHANNELS, generator=rng)
    for kind in KINDS:
        projection = {f"image_proj.{name}": t for name, t in image_proj(kind).items()}
        save_file({**projection, **weights}, folder / f"{kind}.safetensors")
    Image.fromarray(make_frames(1, 40, 60, seed=5)[0]).save(folder / "style.png")
    return {**{kind: folder / f"{kind}.safetensors" for kind in KINDS}, "picture": folder / "style.png"}


@pytest.fixture(scope="module")
def styling(checkpoint_folder: Path, adapters: dict[str, Path]) -> Iterator[Editor]:
    with Editor.from_pretrained(checkpoint_folder, device="cpu", ip_adapter=adapters["usual"]) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_diffusers_pipeline(checkpoint_folder: Path, adapters: dict[str, Path], kind: str) -> None:
    import diffusers
    from transformers import CLIPVisionModelWithProjection

    latents = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(3))
    asked = params(anchors=0, sampler="euler", negative_prompt="blue", style=(adapters["picture"], 0.8))
    with Editor.from_pretrained(checkpoint_folder, device="cpu", ip_adapter=adapters[kind]) as made:
        ours = made.edit(FRAMES[:1], asked, latents=latents).frames[0]
        plain = made.edit(
            FRAMES[:1], params(anchors=0, sampler="euler", negative_prompt="blue"), latents=latents
        ).frames[0]
    encoder = CLIPVisionModelWithProjection.from_pretrained(adapters[kind].parent / "image_encoder")
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(checkpoint_folder, image_encoder=encoder)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(adapters[kind].parent), "", adapters[kind].name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.8)
    theirs = pipe(
        "make it red",
        image=Image.fromarray(FRAMES[0]),
        negative_prompt="blue",
        num_inference_steps=2,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        latents=latents[None].clone(),
        output_type="np",
        ip_adapter_image=Image.open(adapters["picture"]),
    ).images[0]
    assert np.abs((theirs * 255).round() - ours).max() <= 1
    assert np.abs(plain.astype(int) - ours).max() > 3


def test_a_scale_of_0_is_none(styling: Editor, editor: Editor, adapters: dict[str, Path]) -> None:
    plain = editor.edit(FRAMES, params()).frames
    picture = adapters["picture"]
    assert np.array_equal(styling.edit(FRAMES, params()).frames, plain)
    assert np.array_equal(styling.edit(FRAMES, params(style=f"{picture}:0")).frames, plain)
    result = styling.edit(FRAMES, params(style=picture))
    assert not np.array_equal(result.frames, plain)
    (told,) = result.report.controls
    assert (told["kind"], told["sees"], told["scale"]) == ("ip_adapter", str(picture), 1.0)
    assert len(told["digest"]) == 64


@pytest.mark.parametrize("changes", [{"shots": (2,), "continue_look": True}, {"method": "pix2video", "anchors": None}])
def test_with_other_options(styling: Editor, adapters: dict[str, Path], changes: dict) -> None:
    asked = params(**{"micro_batch": None, **changes})
    styled = params(**{"micro_batch": None, "style": adapters["picture"], **changes})
    assert not np.array_equal(styling.edit(FRAMES, asked).frames, styling.edit(FRAMES, styled).frames)


@pytest.mark.slow
def test_workers_and_a_controlnet(checkpoint_folder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    make_controlnet().save_pretrained(tmp_path / "net")
    asked = params(style=f"{adapters['picture']}:0.5", control="canny")
    results = []
    for workers in (1, 2):
        named = {"ip_adapter": adapters["plus"], "controlnet": tmp_path / "net", "workers": workers}
        with Editor.from_pretrained(checkpoint_folder, device="cpu", **named) as made:
            results.append(made.edit(FRAMES, asked).report)
    assert results[0].frames_sha256 == results[1].frames_sha256
    assert [told["kind"] for told in results[1].controls] == ["controlnet", "ip_adapter"]


def test_the_compiled_path_reads_it(checkpoint_folder: Path, adapters: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoint_folder, ip_adapter=adapters["plus"])
    spec = graph_specs(checkpoint)["unet_frame_styled"]
    sizes = {"groups": 3, "frames": 2, "tokens": 7, "height": 8, "width": 16}
    inputs = random_inputs(spec, sizes | {f"context_{i}": 128 >> 2 * i for i in range(4)}, torch.float32, 0)
    eager, fast = (
        EagerBackend(checkpoint, torch.device("cpu"), torch.float32),
        CompiledBackend(checkpoint, torch.device("cpu"), torch.float32, without=("inductor",)),
    )
    expected = eager.engine(spec)(inputs)["output"]
    torch.testing.assert_close(fast.engine(spec)(inputs)["output"], expected, atol=5e-5, rtol=5e-5)
    none = eager.engine(spec)({**inputs, "style_scale": torch.zeros(3)})["output"]
    assert not torch.allclose(none, expected, atol=1e-3)
    assert {"unet_anchor_styled", "unet_frame_styled"} <= set(checkpoint.usual_graphs) <= set(graph_specs(checkpoint))


@pytest.mark.nightly
def test_it_is_exported(adapters: dict[str, Path], checkpoint_folder: Path, tmp_path: Path) -> None:
    from fairy.export.onnx.export import export_model

    checkpoint = load_checkpoint(checkpoint_folder, ip_adapter=adapters["usual"])
    (report,) = export_model(checkpoint, tmp_path, graphs=["unet_frame_styled"]).graphs
    assert report.relative_error is not None


def test_another_picture_is_another_edit(styling: Editor, adapters: dict[str, Path], tmp_path: Path) -> None:
    def identity() -> dict:
        asked = params(style=tmp_path / "style.png")
        return styling._identity(styling._open(FRAMES, asked, Monitor(None, None), None, None).plan)

    (tmp_path / "style.png").write_bytes(adapters["picture"].read_bytes())
    before = identity()
    Image.fromarray(make_frames(1, 40, 61)[0]).save(tmp_path / "style.png")
    assert identity() != before


def test_what_is_missing_is_told(
    editor: Editor, styling: Editor, checkpoint_folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="style = .* belongs to an IP-Adapter; load one"):
        editor.edit(FRAMES, params(style=adapters["picture"]))
    with pytest.raises(InputError, match="does not exist"):
        styling.edit(FRAMES, params(style="nothing.png"))
    wrong = {
        "found: plus.safetensors, usual.safetensors": adapters["usual"].parent,
        "found: none": tmp_path,
        "is no single .safetensors file": tmp_path / "adapter.bin",
    }
    (tmp_path / "adapter.bin").touch()
    for sentence, given in wrong.items():
        with pytest.raises(InputError, match=sentence):
            load_checkpoint(checkpoint_folder, ip_adapter=given)
    (tmp_path / "image_encoder").mkdir()
    (tmp_path / "image_encoder" / "config.json").write_text("{}")
    for key in ("unet.x", "image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"):
        save_file({key: torch.zeros(2, 2)}, tmp_path / "adapter.safetensors")
        with pytest.raises(InputError, match="does not fit the model"):
            load_checkpoint(checkpoint_folder, ip_adapter=tmp_path / "adapter.safetensors")
    (tmp_path / "image_encoder" / "config.json").unlink()
    with pytest.raises(InputError, match="has no image_encoder beside it"):
        load_checkpoint(checkpoint_folder, ip_adapter=tmp_path / "adapter.safetensors")
