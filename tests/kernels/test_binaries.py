"""The kernels' machine code against a committed baseline: what a GPU would run, checked without one."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from fairy.kernels.errors import InputError

BASELINE = json.loads((Path(__file__).parent / "binaries_baseline.json").read_text(encoding="utf-8"))


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


pytestmark = pytest.mark.skipif(
    _triton_version() != BASELINE["triton"],
    reason=f"the baseline is of Triton {BASELINE['triton']}, installed is {_triton_version()}",
)


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90, 100, *(pytest.param(t, marks=pytest.mark.nightly) for t in (86, 89, 120))])
def test_binaries_are_as_good_as_the_baseline(target: int) -> None:
    """No spills, the chip's own matrix instructions, and no more registers or shared memory than before.

    Every head dimension on every target, the two types in turn: all sixty would take twice as long.
    """
    from fairy.kernels.binaries import shipped_variants, table

    chosen = [v for v in shipped_variants() if v.target == target]
    for name, facts in table(v for i, v in enumerate(chosen) if i % 4 in (0, 3)).items():
        known = BASELINE["binaries"][name]
        assert facts.spills == 0, f"{name} spills registers"
        assert facts.matrix >= known["matrix"] > 0, (
            f"{name}: {facts.matrix} matrix instructions, {known['matrix']} before"
        )
        assert facts.registers <= known["registers"] + 8, (
            f"{name}: {facts.registers} registers, {known['registers']} before"
        )
        assert facts.shared_bytes <= known["shared_bytes"], f"{name}: {facts.shared_bytes} bytes of shared memory"


def test_baseline_holds_every_shipped_binary() -> None:
    from fairy.kernels.binaries import shipped_variants

    assert set(BASELINE["binaries"]) == {variant.name for variant in shipped_variants()}


@pytest.mark.parametrize("entry", ["own_and_shared", "shared"])
@pytest.mark.parametrize(("dim", "target"), [(40, 80), (160, 90)])
def test_plugin_entries_fit_every_gpu(entry: str, dim: int, target: int) -> None:
    """What TensorRT runs stays within the shared memory that is granted without asking, and spills nothing."""
    from fairy.kernels.ahead_of_time import SHARED_LIMIT_BYTES, Variant, compile_variant
    from fairy.kernels.binaries import read_facts

    facts = read_facts(compile_variant(Variant(dim, torch.float16, target, entry)))
    assert facts.shared_bytes <= SHARED_LIMIT_BYTES
    assert facts.spills == 0


def test_parameters_come_in_the_order_of_the_binary() -> None:
    """The text names as many parameters as `params` does, and two that Triton adds and nothing reads."""
    from fairy.kernels.ahead_of_time import Variant, compile_variant

    binary = compile_variant(Variant(40, torch.float16, 90))
    head = binary.ptx[binary.ptx.index(".entry") : binary.ptx.index(".reqntid")]
    kinds = [line.split()[1] for line in head.splitlines() if ".param" in line]
    width = {"*fp16": ".u64", "i64": ".b64", "i32": ".b32", "fp32": ".b32"}
    bits = [kind[-2:] for kind in kinds]
    assert bits == [width[kind][-2:] for _, kind in binary.params] + ["64", "64"]
    body = binary.ptx[binary.ptx.index(".reqntid") :]
    for index in (len(kinds) - 2, len(kinds) - 1):
        assert f"_param_{index}]" not in body


@pytest.mark.parametrize(
    ("change", "value"), [("head_dim", 48), ("dtype", torch.float32), ("target", 70), ("entry", "joined")]
)
def test_what_is_not_offered_is_named(change: str, value: object) -> None:
    from fairy.kernels.ahead_of_time import Variant, compile_variant

    fields = {"head_dim": 40, "dtype": torch.float16, "target": 90, "entry": "strided", change: value}
    with pytest.raises(InputError, match=f"{change} = .* is not offered"):
        compile_variant(Variant(**fields))
