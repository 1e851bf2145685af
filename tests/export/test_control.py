"""ControlNets and T2I adapters: their graphs, and the UNet's that take what they give, compute what diffusers does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairy.engines.compiled import CompiledBackend
from fairy.engines.eager import EagerBackend
from fairy.engines.store.key import weights_digest
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.control import Control
from fairy.export.onnx.export import export_model
from fairy.export.shapes import random_inputs
from fairy.kernels.errors import InputError
from tests.conftest import CHANNELS, TEXT_CHANNELS, make_adapter, make_controlnet
from tests.export.small import small_model

CPU = torch.device("cpu")
G, F = 3, 2
SIZES = {"groups": G, "frames": F, "tokens": 7, "height": 8, "width": 16, "image_height": 64, "image_width": 128}
SIZES |= {f"context_{i}": 128 >> 2 * i for i in range(4)}


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    """The random model with a ControlNet of its latents, one that sees the picture too, and an adapter."""
    made = load_checkpoint(checkpoint_folder)
    nets = (make_controlnet(), make_controlnet(seed=9, in_channels=8), make_adapter())
    kinds = ("controlnet", "controlnet", "adapter")
    return replace(made, controls=tuple(Control(kind, net) for kind, net in zip(kinds, nets, strict=True)))


def flat(t: Tensor) -> Tensor:
    return t.flatten(0, 1)


def run(checkpoint: Checkpoint, name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return EagerBackend(checkpoint, CPU, torch.float32).engine(graph_specs(checkpoint)[name])(inputs)


def inputs_of(checkpoint: Checkpoint, name: str, seed: int = 0) -> dict[str, Tensor]:
    return random_inputs(graph_specs(checkpoint)[name], SIZES, torch.float32, seed)


@pytest.mark.parametrize(("number", "changes"), [(0, {}), (1, {"seed": 9, "in_channels": 8})])
def test_a_controlnet_gives_what_diffusers_does(checkpoint: Checkpoint, number: int, changes: dict) -> None:
    inputs = inputs_of(checkpoint, f"controlnet_{number}")
    picture = torch.rand(F, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    inputs["condition"] = run(checkpoint, f"condition_{number}", {"image": picture})["condition"]
    found = run(checkpoint, f"controlnet_{number}", inputs)
    text = inputs["text"].repeat_interleave(F, 0)
    with torch.no_grad():
        down, mid = make_controlnet(**changes)(  # without our hooks
            flat(inputs["sample"]), inputs["timestep"].repeat(G), text, picture.repeat(G, 1, 1, 1), return_dict=False
        )
    assert len(found) == len(down) + 1
    for i, t in enumerate(down):
        torch.testing.assert_close(flat(found[f"control.down.{i}"]), t, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(flat(found["control.mid"]), mid, atol=2e-5, rtol=2e-5)


def test_an_adapter_gives_what_diffusers_does(checkpoint: Checkpoint) -> None:
    picture = torch.rand(F, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    found = run(checkpoint, "adapter_2", {"image": picture})
    with torch.no_grad():
        expected = make_adapter()(picture)
    assert len(found) == len(expected)
    assert all(torch.equal(found[f"control.block.{i}"], t) for i, t in enumerate(expected))


@pytest.mark.parametrize("ends", ["_controlled", "_adapted", "_controlled_adapted"])
def test_the_unet_takes_them_as_diffusers_does(checkpoint: Checkpoint, checkpoint_folder: Path, ends: str) -> None:
    inputs = inputs_of(checkpoint, f"unet{ends}")
    found = run(checkpoint, f"unet{ends}", inputs)["output"]
    given: dict[str, Any] = {}
    if "controlled" in ends:
        down = [flat(inputs[f"control.down.{i}"]) for i in range(12)]
        given |= {"down_block_additional_residuals": down, "mid_block_additional_residual": flat(inputs["control.mid"])}
    if "adapted" in ends:
        given["down_intrablock_additional_residuals"] = [flat(inputs[f"control.block.{i}"]) for i in range(4)]
    text = inputs["text"].repeat_interleave(F, 0)
    with torch.no_grad():
        expected = load_checkpoint(checkpoint_folder).unet(
            flat(inputs["sample"]), inputs["timestep"].repeat(G), text, return_dict=False, **given
        )[0]
    torch.testing.assert_close(flat(found), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["unet", "unet_anchor", "unet_frame"])
def test_the_compiled_path_takes_them(checkpoint: Checkpoint, name: str) -> None:
    name += "_controlled_adapted"
    inputs = inputs_of(checkpoint, name)
    expected = run(checkpoint, name, inputs)
    backend = CompiledBackend(checkpoint, CPU, torch.float32, without=("inductor",))
    engine = backend.engine(graph_specs(checkpoint)[name])
    for key, t in engine(inputs).items():
        torch.testing.assert_close(t, expected[key], atol=5e-5, rtol=5e-5)
    # The first two branches share a picture, and so their anchors' tokens, until text is read.
    alike = ("sample", "context")
    inputs = {key: t[[1, 1, 2]] if key.startswith(alike) else t for key, t in inputs.items()}
    expected = run(checkpoint, name, inputs)
    found = engine({**inputs, "sample": inputs["sample"][1:]})
    torch.testing.assert_close(found["output"], expected["output"], atol=5e-5, rtol=5e-5)
    backend.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Of two levels, the second without attention."""
    made = small_model(tmp_path_factory.getbasetemp())
    like = {"block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 2}
    like |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8}
    nets = (make_controlnet(**like), make_adapter(channels=[16, 32]))
    controls = tuple(Control(kind, net) for kind, net in zip(("controlnet", "adapter"), nets, strict=True))
    return replace(made, controls=controls)


@pytest.mark.slow
def test_they_are_exported(small: Checkpoint, tmp_path: Path) -> None:
    """Each file is compared with torch at several sizes."""
    graphs = ["condition_0", "controlnet_0", "adapter_1", "unet_frame_controlled_adapted"]
    report = export_model(small, tmp_path, graphs=graphs)
    assert [graph.name for graph in report.graphs if graph.relative_error is not None] == graphs


def test_an_edit_uses_their_graphs(checkpoint: Checkpoint) -> None:
    assert {"unet_anchor_controlled_adapted", "controlnet_1", "adapter_2"} <= set(checkpoint.usual_graphs)
    assert set(checkpoint.usual_graphs) <= set(graph_specs(checkpoint))
    assert "unet_anchor" in replace(checkpoint, controls=()).usual_graphs


def test_what_does_not_fit_is_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    wrong = {
        "cross_attention_dim": make_controlnet(cross_attention_dim=TEXT_CHANNELS * 2),
        "block_out_channels": make_controlnet(block_out_channels=CHANNELS[:2], down_block_types=("DownBlock2D",) * 2),
        "channels": make_adapter(channels=[32, 64]),
        "UNet2DConditionModel": load_checkpoint(checkpoint_folder).unet,
    }
    for what, network in wrong.items():
        network.save_pretrained(tmp_path / what)
        with pytest.raises(InputError, match=what):
            load_checkpoint(checkpoint_folder, controls=[(tmp_path / what, 1.0)])
    with pytest.raises(InputError, match="neither a folder"):
        load_checkpoint(checkpoint_folder, controls=[(tmp_path / "nothing", 1.0)])


def test_others_are_other_engines(checkpoint_folder: Path, tmp_path: Path) -> None:
    made = []
    for seed in (7, 8):
        make_controlnet(seed=seed).save_pretrained(tmp_path / str(seed))
        made.append(load_checkpoint(checkpoint_folder, controls=[(tmp_path / str(seed), 1.0)]))
    assert len({weights_digest(one, "control_0") for one in made}) == 2
    assert len({weights_digest(one, "unet") for one in made}) == 1
