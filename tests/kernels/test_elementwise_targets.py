"""What the interpreter cannot show: the elementwise kernels compile for real GPUs, and load 16 bytes at a time."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from fairy.benchmarks.work import geglu_work, group_norm_silu_work
from fairy.kernels import geglu, group_norm_silu, guidance_step, temporal_attention
from fairy.kernels.group_norm_silu import default_config
from fairy.kernels.launching import next_power_of_2

K = 10  # channels of a group at level 0 of SD1.5
NORM = default_config(K)
HALF = {"x_ptr": "*fp16", "out_ptr": "*fp16", "weight_ptr": "*fp16", "bias_ptr": "*fp16", "outputs_ptr": "*fp16"}
HALF |= {"q_ptr": "*fp16", "k_ptr": "*fp16", "v_ptr": "*fp16"}
FLOAT = {"eps": "fp32", "scale": "fp32"} | {
    f"{name}_ptr": "*fp32" for name in ("means", "m2", "joined_means", "joined_m2", "latents", "noise", "coefficients")
}
# What the launcher's integers are divisible by at SD1.5's sizes; Triton's own launcher finds out at run time.
DIVISIBLE = {"channels", "pixels", "row_stride", "sample_stride", "pixel_stride", "group_stride", "frame_stride"}
DIVISIBLE |= {"channel_stride", "latents_stride"}
DIVISIBLE |= {f"{x}_{axis}" for x in "qkv" for axis in ("window", "frame", "place", "head")}

# name: kernel, its constants, and the 16-byte loads it must have at least
KERNELS: dict[str, tuple[Any, dict[str, object], int]] = {
    "geglu": (geglu._geglu_kernel, dict(geglu.DEFAULT.blocks), 2),
    "statistics": (
        group_norm_silu._statistics_kernel,
        {"K": K, "K_PADDED": next_power_of_2(K), "PIXELS": NORM["PIXELS"], "GROUPS": NORM["GROUPS"]},
        0,  # ten channels are 20 bytes
    ),
    "join": (group_norm_silu._join_kernel, {"K": 4, "CHUNKS": 256, "GROUPS": 4}, 0),
    "normalise": (
        group_norm_silu._normalise_kernel,
        {"K": K, "CHUNKS": 16, "PIXELS": NORM["PIXELS"], "CHANNELS": NORM["CHANNELS"], "SILU": True},
        2,
    ),
    "attention over time": (
        temporal_attention._temporal_attention_kernel,
        {"CHANNELS": 40, "FRAMES_PADDED": 16, "CHANNELS_PADDED": 64, "UPCAST": False},
        2,
    ),
    "guided step": (
        guidance_step._guidance_step_kernel,
        {"BRANCHES": 3, "NOISE": True, "pixel_stride": 1, **dict(guidance_step.DEFAULT.blocks)},
        5,
    ),
}


def _ptx(kernel: Any, constants: Mapping[str, object], capability: int) -> str:
    types = dict.fromkeys(kernel.arg_names, "i32") | HALF | FLOAT | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    aligned = [n for n, t in signature.items() if t.startswith("*") or (n in DIVISIBLE and t != "constexpr")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return str(compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4}).asm["ptx"])


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_it_compiles(name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, constants, wide_loads = KERNELS[name]
    ptx = _ptx(kernel, constants, capability)
    assert f".target sm_{capability}" in ptx
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) >= wide_loads
    assert ".local" not in ptx, "a tile does not fit the registers"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
def test_special_functions_are_as_many_as_the_cost_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions of the special-function units, times the threads of four warps, for each element of a tile.

    SiLU's second one is its division; joining the statistics takes a few more, for a whole tile.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    gate = dict(geglu.DEFAULT.blocks)
    tiles = {"geglu": gate["ROWS"] * gate["COLUMNS"], "normalise": NORM["PIXELS"] * NORM["CHANNELS"]}
    found = {}
    for name, tile in tiles.items():
        kernel, constants, _ = KERNELS[name]
        ptx = _ptx(kernel, constants, 90)
        found[name] = [len(re.findall(rf"\b{kind}\.", ptx)) * 128 / tile for kind in ("ex2", r"(?:rcp|div\.full)")]
    assert found["geglu"] == [geglu_work(1, 1, torch.float16).specials, 0]
    assert found["normalise"][0] == group_norm_silu_work(1, 1, 1, torch.float16).specials - 1
    assert found["normalise"][1] >= 1
