"""Bounds: one value of every kernel worked out by hand, what binds in known cases, and where there is no bound."""

import re
from dataclasses import replace

import pytest
import torch

from benchmarks import cells
from benchmarks.cells import Cell, measure, table
from fairy.benchmarks import counts, work
from fairy.benchmarks.bounds import PEAKS, RESOURCES, Work, bound_of, device_bound, peak_named
from fairy.benchmarks.ladder.networks import FULL, count_flops
from fairy.runtime.cli.main import run

CPU = torch.device("cpu")
HALF, FLOAT8 = torch.float16, torch.float8_e4m3fn
PEAK = {peak.name: peak for peak in PEAKS}
WORKS = work.edit_work()


def test_work_of_every_kernel_by_hand() -> None:
    """Numbers, not formulas: 9 samples of 3072 tokens of 320 channels, and so on."""
    attention = WORKS["anchor_attention, level 0"]
    assert attention.specials == 2_717_908_992  # 9 · 8 heads · 3072 queries · 12 288 keys
    assert attention.flops == 434_865_438_720  # four times 40 of each
    assert attention.num_bytes == 106_168_320  # 4 · 17 694 720 own, 2 · 17 694 720 of three shared anchors
    norm = WORKS["group_norm_silu, level 0"]
    assert (norm.num_bytes, norm.specials, norm.flops) == (53_084_160, 17_694_720, 0)
    gate = WORKS["geglu, level 0"]
    assert (gate.num_bytes, gate.specials) == (212_336_640, 35_389_440)
    step = WORKS["guidance_step"]
    assert step.num_bytes == 221_184 + 2 * 147_456 + 49_152  # three outputs in 16 bit, latents twice, noise once
    upsample = WORKS["upsample_conv, level 3 to 2"]
    assert upsample.flops == 22_649_241_600  # 9 · 48 pixels · 4 phases · 4 taps · 1280² · 2
    assert upsample.num_bytes == 2 * (552_960 + 4 * 552_960 + 26_214_400)


@pytest.mark.parametrize(
    ("call", "gpu", "microseconds", "binding"),
    [
        ("anchor_attention, level 0", "H100", 703.2, "special functions"),  # 2.718e9 / (16 · 132 · 1.83e9)
        ("anchor_attention, level 0", "A100", 1393.8, "tensor cores"),  # 4.349e11 / 3.12e14
        ("anchor_attention, level 2", "H100", 7.922, "memory"),  # 2.654e7 / 3.35e12
        ("anchor_attention, level 2", "H200", 6.868, "tensor cores"),  # 6.795e9 / 9.894e14
        ("group_norm_silu, level 0", "L4", 176.95, "memory"),
        ("geglu, level 0", "H200", 44.24, "memory"),
        ("guidance_step", "RTX 4090", 0.5607, "memory"),
        ("upsample_conv, level 1 to 0", "H100", 91.57, "tensor cores"),
        ("upsample_conv, level 3 to 2", "L4", 193.2, "memory"),  # 5.796e7 / 3e11; 187.2 of the tensor cores
    ],
)
def test_bounds_by_hand(call: str, gpu: str, microseconds: float, binding: str) -> None:
    bound = bound_of(WORKS[call], PEAK[gpu])
    assert bound is not None
    assert bound.ms * 1e3 == pytest.approx(microseconds, rel=2e-4)
    assert bound.binding == binding
    assert bound.share(2 * bound.ms) == pytest.approx(0.5)


@pytest.mark.parametrize("resource", RESOURCES)
def test_each_resource_binds_where_only_it_is_used(resource: str) -> None:
    only = {
        "memory": Work(10**9),
        "tensor cores": Work(1, flops=10**12, dtype=HALF),
        "vector units": Work(1, vector_flops=10**12),
        "special functions": Work(1, specials=10**9),
    }[resource]
    for peak in PEAKS:
        bound = bound_of(only, peak)
        assert bound is not None
        assert bound.binding == resource
        assert bound.ms == bound.resources_ms[bound.binding] > 0


def test_peaks_agree_with_their_chips() -> None:
    """Sheet figures beside what a clock of one multiprocessor does: 4096 operations in 16 bit on Hopper."""
    a_clock = {"H100": 4096, "H200": 4096, "A100": 2048, "RTX 4090": 512, "L4": 1024}
    for peak in PEAKS:
        computed = a_clock[peak.name] * peak.multiprocessors * peak.clock_hz
        assert peak.flop_per_s[HALF] == pytest.approx(computed, rel=2e-3)
        assert peak.flop_per_s[torch.bfloat16] == peak.flop_per_s[HALF]
        if FLOAT8 in peak.flop_per_s:
            assert peak.flop_per_s[FLOAT8] == pytest.approx(2 * peak.flop_per_s[HALF], rel=1e-3)
        assert peak.source
    assert PEAK["H100"].specials_per_s == pytest.approx(3.9e12, rel=0.01)  # FlashAttention-3's figure


def test_the_kernels_attention_is_that_of_the_network() -> None:
    """Layer by layer against the count of the whole UNet: SD1.5 has 5, 5, 5 and 1 layers at its levels."""
    flops = count_flops(FULL).unet
    joined = flops["unet_frame"] - flops["unet"]  # what three anchors add to attention on oneself
    layers = {"level 0": 5, "level 1": 5, "level 2": 5, "level 3": 1}
    ours = sum(count * WORKS[f"anchor_attention, {level}"].flops for level, count in layers.items())
    assert joined == pytest.approx(ours * 3 / 4 / 9)


def test_a_type_that_a_gpu_does_not_multiply_has_no_bound_there() -> None:
    eighth = Work(10, flops=10**12, dtype=FLOAT8)
    assert bound_of(eighth, PEAK["A100"]) is None
    assert bound_of(eighth, PEAK["L4"]).ms == pytest.approx(1e3 / 242)  # type: ignore[union-attr]
    assert bound_of(replace(eighth, flops=0), PEAK["A100"]) is not None


def test_gpus_are_known_by_torchs_names() -> None:
    assert peak_named("NVIDIA H100 80GB HBM3") is PEAK["H100"]
    assert peak_named("NVIDIA H200") is PEAK["H200"]
    for other in ("NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L40S", "NVIDIA A100-SXM4-40GB", ""):
        assert peak_named(other) is None


def test_the_share_stands_in_a_table_where_the_device_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1 << 16)
    cell = Cell("made up", {"ours": lambda: x * 2}, lambda: 2 * x.double(), Work(2 * x.nbytes, specials=1))
    (row,) = measure(cell, CPU, budget_ms=5)
    assert (row.share_of_bound, row.bound_by) == (None, None)
    assert device_bound(cell.work, CPU) is None
    monkeypatch.setattr(cells, "device_bound", lambda work, device: bound_of(work, PEAK["L4"]))
    (row,) = measure(cell, CPU, budget_ms=5)
    assert row.share_of_bound == pytest.approx(2 * x.nbytes / 0.3e12 * 1e3 / row.ms)
    head, line = table([row]).splitlines()
    assert "share of bound" in head
    assert f"{row.share_of_bound:.2f} (memory)" in line


def test_an_unknown_gpu_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Something Else")
    assert device_bound(WORKS["guidance_step"], torch.device("cuda")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    assert device_bound(WORKS["guidance_step"], torch.device("cuda")) == bound_of(WORKS["guidance_step"], PEAK["L4"])


def test_the_table_names_every_gpu_and_its_source() -> None:
    text = work.table()
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines[2 : 2 + len(WORKS)]] == list(WORKS)
    assert re.search(r"anchor_attention, level 0 .* 703\.2 s .* 1394 t", text)
    for peak in PEAKS:
        assert f"{peak.name}: {peak.source}" in text


def test_the_command_prints_counts_and_bounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(counts, "run_counts", lambda model: [])
    assert run(["bench", "counts"]) == 0
    printed = capsys.readouterr().out
    assert "synchronisations" in printed
    assert work.table() in printed
