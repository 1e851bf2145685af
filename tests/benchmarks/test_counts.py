"""What a step does, counted: beside known operations, torch's own counter and the committed baseline."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fairy.benchmarks import counts
from fairy.benchmarks.counts import KINDS, count_decode, count_steps, counting, run_counts
from fairy.benchmarks.gate import Limits, compare, failed, table
from fairy.benchmarks.records import Record, RecordFile, read_records
from fairy.export.bases.stable_diffusion import build_graph, graph_specs
from fairy.export.checkpoint import load_checkpoint
from fairy.export.shapes import random_inputs
from fairy.kernels.anchor_attention import anchor_attention, anchor_attention_reference
from fairy.runtime import Editor, embedded_model
from fairy.runtime.denoise import denoiser

BASELINE = Path(counts.__file__).resolve().parent / "baselines" / "counts.json"
X = torch.linspace(-1, 1, 6)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: X + 1, (1, 0, 1, 24, 0, 0)),
        (lambda: X.clone().add_(1), (2, 1, 1, 24, 0, 0)),
        (lambda: X.view(2, 3).transpose(0, 1)[1:], (0, 0, 0, 0, 0, 0)),
        (lambda: X.view(2, 3).t().contiguous(), (1, 1, 1, 24, 0, 0)),
        (lambda: X.to(torch.float64), (1, 1, 1, 48, 0, 0)),
        (lambda: X.to(torch.float32), (0, 0, 0, 0, 0, 0)),
        (lambda: torch.empty(5), (0, 0, 1, 20, 0, 0)),
        (lambda: X.view(2, 3) @ X.view(3, 2), (1, 0, 1, 16, 0, 24)),
        (lambda: X.sum().item(), (1, 0, 1, 4, 1, 0)),
        (lambda: float(X.sum()), (1, 0, 1, 4, 1, 0)),
        (lambda: bool(X[0] > 0), (1, 0, 1, 1, 1, 0)),
        (lambda: X.tolist(), (0, 0, 0, 0, 1, 0)),
        (lambda: X.cpu().numpy(), (0, 0, 0, 0, 1, 0)),
        (lambda: X.nonzero(), (1, 0, 1, 48, 1, 0)),
        (lambda: X[X > 0], (2, 0, 2, 18, 1, 0)),
        (lambda: torch.equal(X, X), (0, 0, 0, 0, 1, 0)),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_known_operations(call: Callable[[], object], expected: tuple[int, ...], inference: bool) -> None:
    with torch.inference_mode(inference), counting() as found:
        call()
    assert tuple(found[kind] for kind in KINDS) == expected


@pytest.mark.parametrize(("own", "segments"), [(True, [(1, 7)]), (True, []), (False, [(3, 5), (1, 4)])])
def test_attention_costs_what_its_plain_form_costs(own: bool, segments: list[tuple[int, int]]) -> None:
    q = torch.randn(2, 3, 5, 12)
    keys = q if own else None
    context = [torch.randn(2, frames, length, 12) for frames, length in segments]
    with counting() as ours:
        anchor_attention(q, keys, keys, context, context, heads=3)
    with counting() as plain:
        anchor_attention_reference(q, keys, keys, context, context, 3)
    assert ours["flops"] == plain["flops"] > 0
    assert (ours["launches"], ours["allocations"], ours["allocated_bytes"]) == (1, 1, q.nbytes)


def test_the_decoders_flops_are_those_of_torchs_counter() -> None:
    checkpoint = load_checkpoint(embedded_model())
    found = count_decode(checkpoint)
    spec = graph_specs(checkpoint)["vae_decoder"]
    sizes = {"frames": 1, "height": counts.HEIGHT // 8, "width": counts.WIDTH // 8}
    assert checkpoint.vae_factor == 8
    latents = random_inputs(spec, sizes, torch.float32, seed=0)["latents"]
    torchs = FlopCounterMode(display=False)
    with torch.inference_mode(), torchs:
        build_graph(checkpoint, spec)(latents)
    attention = [m for m in checkpoint.vae.decoder.modules() if type(m).__name__ == "Attention"]
    tokens = sizes["height"] * sizes["width"]
    missing = sum(4 * tokens**2 * m.to_q.out_features for m in attention)  # torch's has no formula for the CPU's SDPA
    assert found["flops"] in (torchs.get_total_flops(), torchs.get_total_flops() + missing)
    assert found["synchronisations"] == 0


@pytest.fixture(scope="module")
def embedded() -> Iterator[Editor]:
    with Editor.from_pretrained(device="cpu", dtype="float32", backend="eager") as made:
        yield made


@pytest.mark.slow
def test_a_step_does_no_more_than_the_baseline() -> None:
    """Exact; with other versions of torch or diffusers there is nothing to compare with."""
    new = RecordFile({record.name: record for record in run_counts()}, {})
    verdicts = compare(read_records(BASELINE), new)
    assert len(verdicts) == 3
    good = {"pass", "improved", "needs-calibration"}
    assert {verdict.status for verdict in verdicts} <= good, (
        f"{table(verdicts)}\nif that is meant: fairy bench counts --out benchmarks/baselines/counts.json"
    )


def test_the_loop_never_waits_for_the_device_in_the_baseline() -> None:
    for record in read_records(BASELINE).records.values():
        assert record.counts["synchronisations"] == 0, record.name


def _record(counted: dict[str, dict[str, int]], name: str) -> RecordFile:
    record = Record(name, {}, {"torch": torch.__version__}, {}, counts=counted[name])
    return RecordFile({name: record}, {})


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["item", "copy"])
def test_a_seeded_extra_synchronisation_or_copy_is_caught(
    fault: str, embedded: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler's step reads one value of its result, or copies it; both phases see it, and nothing else changes."""
    before = count_steps(embedded)
    step = denoiser.step

    def faulty(*arguments: object) -> Tensor:
        out: Tensor = step(*arguments)  # type: ignore[arg-type]
        if fault == "copy":
            return out.clone()
        out[0, 0, 0, 0].item()
        return out

    monkeypatch.setattr(denoiser, "step", faulty)
    after = count_steps(embedded)
    for name, counted in before.items():
        (verdict,) = compare(_record(before, name), _record(after, name), Limits())
        assert failed([verdict])
        worse = {f.says.split()[0] for f in verdict.findings if f.status == "regression"}
        if fault == "item":
            assert worse == {"synchronisations"}, verdict
            assert after[name] == counted | {"synchronisations": counted["synchronisations"] + 1}
        else:
            assert worse == {"launches", "copies", "allocations", "allocated_bytes"}, verdict
