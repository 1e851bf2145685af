"""A UNet of the SDXL class: pooled text and sizes are further inputs of its graphs, in torch and in ONNX."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fairy.export.bases.stable_diffusion import UNetGraph
from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import added_conditions, frame_layers, self_attention_layers, unet_spec
from fairy.export.onnx.export import export_onnx
from fairy.export.onnx.onnx_files import MODEL
from fairy.export.onnx.parity import check_graph
from fairy.export.shapes import random_inputs
from fairy.kernels.errors import InputError
from tests.conftest import TEXT_CHANNELS, make_unet

POOLED, TIME = 10, 4
SDXL = {
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME,
    "projection_class_embeddings_input_dim": POOLED + 6 * TIME,
}


def _spec(unet: torch.nn.Module, layers):
    return unet_spec(
        "unet_frame",
        layers,
        in_channels=8,
        out_channels=4,
        text_channels=TEXT_CHANNELS,
        conditions=added_conditions(unet),
    )


def test_it_equals_diffusers() -> None:
    """Every group has conditions of its own; all its frames share them."""
    unet, plain = make_unet(**SDXL).double(), make_unet(**SDXL).double()
    spec = _spec(unet, self_attention_layers(unet))
    assert [t.name for t in spec.inputs] == ["sample", "timestep", "text", "text_embeds", "time_ids"]
    sizes = {"groups": 3, "frames": 2, "height": 6, "width": 4, "tokens": 5}
    inputs = random_inputs(spec, sizes, torch.float64, seed=0)
    (found,) = UNetGraph(unet, spec)(*inputs.values())
    for g in range(3):
        for f in range(2):
            expected = plain(
                inputs["sample"][g, f : f + 1],
                inputs["timestep"][f],
                inputs["text"][g : g + 1],
                added_cond_kwargs={name: inputs[name][g : g + 1] for name in ("text_embeds", "time_ids")},
            ).sample[0]
            torch.testing.assert_close(found[g, f], expected, atol=1e-9, rtol=1e-9)


def test_other_embeddings_are_refused() -> None:
    assert added_conditions(make_unet()) == ()
    with pytest.raises(InputError, match="'image' embeddings"):
        added_conditions(SimpleNamespace(config=SimpleNamespace(addition_embed_type="image")))


@pytest.mark.slow
def test_it_exports(tmp_path: Path) -> None:
    unet = make_unet(**SDXL)
    spec = _spec(unet, frame_layers(self_attention_layers(unet), "decoder"))
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(8, 8, 16, 16)))
    checkpoint = Checkpoint("SDXL class", unet, vae, None, None, {}, {})
    export_onnx(checkpoint, spec, tmp_path / MODEL, body="onnxruntime", precision="float32")
    assert check_graph(checkpoint, spec, tmp_path / MODEL, "float32").relative_error < 1e-5
