"""The autoencoder with 16 channels: its losses, its cost, and that its stages go on from their checkpoints."""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from skimage.metrics import structural_similarity
from torch.utils.flop_counter import FlopCounterMode

from training import autoencoder16
from training.autoencoder import build_autoencoder
from training.autoencoder16 import (
    Plan,
    build_autoencoder16,
    edge_error,
    export_weights,
    linear_code,
    load_weights,
    restoration_loss,
    similarity,
    train,
)
from training.compute import Compute

CPU = Compute()
TINY = Plan(steps=4, crops=((32, 2), (48, 1)), pictures=2, guided_steps=2)


def decoder_flops(model: AutoencoderKL, channels: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.decode(torch.zeros(1, channels, 16, 16))
    return int(counter.get_total_flops())


def test_its_decoder_costs_no_more_than_the_one_with_four_channels() -> None:
    assert decoder_flops(build_autoencoder16(), 16) <= decoder_flops(build_autoencoder(), 4)


def test_similarity_is_scikit_images() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((23, 37, 3)).astype(np.float32)
    second = np.clip(first + rng.normal(0, 0.2, first.shape), 0, 1).astype(np.float32)
    tensors = (torch.from_numpy(picture).permute(2, 0, 1)[None].double() for picture in (first, second))
    expected = structural_similarity(first.astype(float), second.astype(float), channel_axis=2, data_range=1.0)
    assert float(similarity(*tensors)) == pytest.approx(expected, abs=1e-9)


def test_the_loss_of_edges_sees_a_blur_and_no_shade() -> None:
    x = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    x[..., 16:] = 1
    assert float(restoration_loss(x, x)) == pytest.approx(0, abs=1e-9)
    blurred = torch.nn.functional.avg_pool2d(x, 9, stride=1, padding=4, count_include_pad=False)
    assert float(edge_error(x + 0.1 - x)) < 1e-12
    assert float(edge_error(blurred - x)) > 0.02
    assert float(restoration_loss(blurred, x)) > 0.02


def test_filters_of_the_linear_code_are_orthogonal_within_a_plane_and_see_means() -> None:
    filters = linear_code()
    assert filters.shape == (16, 3, 8, 8)
    luma = filters[:10].flatten(1).double()
    gram = luma @ luma.T
    assert float((gram - gram.diag().diag()).abs().max()) < 1e-6
    white = torch.ones(1, 3, 8, 8)
    code = torch.nn.functional.conv2d(white, filters).flatten()
    expected = torch.zeros(16)
    expected[0] = 2.0
    torch.testing.assert_close(code, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_stages_go_on_where_they_stopped_and_the_decoders_keeps_the_latents(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train("autoencoder", TINY, whole, CPU, seed=3, deadline=math.inf)
    with pytest.MonkeyPatch.context() as patch:  # the time is up after two steps
        clock = iter([0.0, 0.0, math.inf])
        patch.setattr(time, "monotonic", lambda: next(clock))
        train("autoencoder", TINY, broken, CPU, seed=3, deadline=1.0)
    train("autoencoder", TINY, broken, CPU, seed=3, deadline=math.inf)
    first, second = (load_file(folder / "autoencoder.safetensors") for folder in (whole, broken))
    assert not [name for name in first if not torch.equal(first[name], second[name])]

    train("decoder", replace(TINY, steps=2, guided_steps=0), whole, CPU, seed=3, deadline=math.inf)
    after = load_file(whole / "decoder.safetensors")
    names = [name for name in first if name.startswith("average/")]
    changed = {name.split(".")[0] for name in names if not torch.equal(first[name], after[name])}
    assert changed == {"average/decoder", "average/post_quant_conv"}


@pytest.mark.slow
def test_what_is_exported_restores_the_same_pictures(tmp_path: Path) -> None:
    """In float16 files and float32 arithmetic; further training may start from such a file."""
    train("autoencoder", TINY, tmp_path, CPU, seed=0, deadline=math.inf)
    export_weights(tmp_path / "autoencoder.safetensors", tmp_path / "weights.safetensors")
    assert {tensor.dtype for tensor in load_file(tmp_path / "weights.safetensors").values()} == {torch.float16}
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    restored = []
    for name in ("autoencoder", "weights"):
        model = build_autoencoder16().eval()
        load_weights(model, tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            restored.append(model.decode(model.encode(x).latent_dist.mode()).sample)
    torch.testing.assert_close(restored[0], restored[1], atol=0.02, rtol=0)
    plan = replace(TINY, steps=0, guided_steps=0)
    start = tmp_path / "weights.safetensors"
    started = train("autoencoder", plan, tmp_path / "next", CPU, seed=0, deadline=math.inf, start=start)
    torch.testing.assert_close(
        started.average["decoder.conv_in.weight"], load_file(start)["decoder.conv_in.weight"].float()
    )


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--stage autoencoder first"):
        autoencoder16.main(["--out", str(tmp_path), "--stage", "decoder"])
    with pytest.raises(SystemExit, match="absent"):
        autoencoder16.main(["--out", str(tmp_path), "--start-from", str(tmp_path / "absent")])
