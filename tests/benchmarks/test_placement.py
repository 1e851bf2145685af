"""Placement: every frame once and in order, batches that nothing but the anchors decides, refusals that help."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairy.benchmarks.scaling.placement import Link, Placement, Workload, bank_arrivals_ms, expected_ms, plan_placement
from fairy.kernels.errors import InputError
from fairy.runtime.plan.batches import default_micro_batch
from fairy.runtime.plan.stage_costs import Memory, StageCosts, memory_per_worker

COSTS = StageCosts(
    name="a model",
    measured=False,
    precision="float32",
    long_side=512,
    anchors=3,
    micro_batch=3,
    text_ms=5.0,
    encode_ms=3.0,
    decode_ms=6.0,
    anchors_step_ms=20.0,
    frames_step_ms=22.0,
    handout_ms=0.5,
    weights_bytes=2_000_000_000,
    bank_step_bytes=300_000_000,
    unet_frame_bytes=400_000_000,
    vae_bytes=900_000_000,
)
FAST, SLOW = Link("fast", 300.0), Link("slow", 0.01)


def of(num_anchors: int, micro_batch: int | None = None, **changes: object) -> StageCosts:
    """The costs of batches of that many frames."""
    return replace(COSTS, anchors=num_anchors, micro_batch=micro_batch or default_micro_batch(num_anchors), **changes)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Workload, StageCosts, int, Link, int | None]:
    """Any job: anchors anywhere, any number of workers, costs and links from nothing to absurd."""
    num_frames = draw(st.integers(1, 400))
    anchors = tuple(sorted(draw(st.sets(st.integers(0, num_frames - 1), max_size=12))))
    micro_batch = draw(st.none() | st.integers(1, 40))
    times = st.floats(0, 1e4, allow_nan=False)
    names = ("text_ms", "encode_ms", "decode_ms", "anchors_step_ms", "frames_step_ms", "handout_ms")
    costs = of(len(anchors), micro_batch, **{name: draw(times) for name in names})
    link = Link("any", draw(st.floats(1e-3, 1e3)), draw(st.floats(0, 10)), draw(st.sampled_from(["ring", "tree"])))
    return Workload(num_frames, anchors, draw(st.integers(1, 30))), costs, draw(st.integers(1, 70)), link, micro_batch


@given(jobs())
@settings(max_examples=120, deadline=None)
def test_every_frame_is_edited_exactly_once_and_in_order(job: tuple) -> None:
    workload, costs, workers, link, micro_batch = job
    plan = plan_placement(workload, costs, num_workers=workers, link=link, micro_batch=micro_batch)
    covered = list(itertools.chain.from_iterable(range(part.start, part.stop) for part in plan.parts))
    assert covered == list(range(workload.num_frames))
    denoised = list(itertools.chain.from_iterable(part.frames for part in plan.parts))
    assert denoised == [i for i in range(workload.num_frames) if i not in workload.anchors]
    assert all(len(part.frames) == plan.micro_batch for part in plan.parts[:-1])
    assert len(plan.parts[-1].frames) <= plan.micro_batch


@given(jobs(), st.integers(1, 70), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_workers_length_and_memory_never_change_a_batch(job: tuple, other_workers: int, longer: int) -> None:
    workload, costs, workers, link, micro_batch = job
    plan = plan_placement(workload, costs, num_workers=workers, link=link, micro_batch=micro_batch)
    other = plan_placement(
        workload, costs, num_workers=other_workers, link=SLOW, micro_batch=micro_batch, memory_bytes=10**15
    )
    assert other.parts == plan.parts
    extended = replace(workload, num_frames=workload.num_frames + longer)
    grown = plan_placement(extended, costs, num_workers=workers, link=link, micro_batch=micro_batch)
    assert grown.micro_batch == plan.micro_batch
    whole = [part for part in plan.parts if len(part.frames) == plan.micro_batch]
    for mine, theirs in zip(whole, grown.parts, strict=False):
        assert theirs.frames == mine.frames


@given(jobs())
@settings(max_examples=60, deadline=None)
def test_who_has_what_to_do_is_consistent(job: tuple) -> None:
    workload, costs, workers, link, micro_batch = job
    plan = plan_placement(workload, costs, num_workers=workers, link=link, micro_batch=micro_batch)
    assert 1 <= plan.active <= workers
    assert plan.active <= plan.batches + 1
    assert (plan.bank == "none") == (not workload.anchors)
    expected_ranks = {"none": (), "local": (0,), "broadcast": (0,), "recompute": tuple(range(plan.active))}
    assert plan.phase_a == expected_ranks[plan.bank]
    assert (plan.bank in ("broadcast", "recompute")) == (plan.active > 1 and bool(workload.anchors))


def _by_hand(workload: Workload, costs: StageCosts, batches: int, bank: str, active: int, link: Link) -> Fraction:
    """The makespan in exact arithmetic: workers one by one, batches one by one."""
    cost = {name: Fraction(getattr(costs, name)) for name in costs.to_json() if name.endswith("_ms")}
    phase_a = cost["text_ms"] + costs.anchors * cost["encode_ms"]
    arrivals, arrived = [], Fraction(0)
    for _ in range(workload.num_inference_steps):
        phase_a += cost["anchors_step_ms"]
        arrived = max(arrived, phase_a) + Fraction(link.broadcast_ms(costs.bank_step_bytes, active))
        arrivals.append(arrived)
    free = [cost["text_ms"]] * active
    if bank in ("local", "broadcast", "recompute"):
        free[0] = phase_a + costs.anchors * cost["decode_ms"]
    if bank == "recompute":
        free[1:] = [phase_a] * (active - 1)
    for _ in range(batches):
        rank = min(range(active), key=lambda r: free[r])
        time = free[rank] + cost["handout_ms"] + costs.micro_batch * cost["encode_ms"]
        for step in range(workload.num_inference_steps):
            if bank == "broadcast" and rank:
                time = max(time, arrivals[step])
            time += cost["frames_step_ms"]
        free[rank] = time + costs.micro_batch * cost["decode_ms"]
    return max(free)


@pytest.mark.parametrize("link", [FAST, SLOW, Link("tree", 5.0, 0.1, "tree")], ids=lambda link: link.name)
@pytest.mark.parametrize("bank", ["none", "local", "broadcast", "recompute"])
@pytest.mark.parametrize(("frames", "active"), [(4, 2), (5, 2), (23, 3), (120, 8), (121, 8), (1000, 7)])
def test_expected_time_is_that_of_exact_arithmetic(frames: int, active: int, bank: str, link: Link) -> None:
    active = {"local": 1}.get(bank, active)
    workload = Workload(frames, () if bank == "none" else (0, 1, 2), 10)
    costs = of(0 if bank == "none" else 3)
    batches = -(-(frames - costs.anchors) // 3)
    active = min(active, batches + 1)
    found = expected_ms(workload, costs, batches, bank=bank, active=active, link=link)
    assert found == pytest.approx(float(_by_hand(workload, costs, batches, bank, active, link)), rel=1e-9)


def test_a_fast_link_broadcasts_and_a_slow_one_makes_everybody_compute() -> None:
    workload = Workload(120, (20, 60, 100), 10)
    fast = plan_placement(workload, COSTS, num_workers=8, link=FAST)
    slow = plan_placement(workload, COSTS, num_workers=8, link=SLOW)
    assert (fast.bank, fast.phase_a) == ("broadcast", (0,))
    assert (slow.bank, slow.phase_a) == ("recompute", tuple(range(8)))
    assert fast.makespan_ms < slow.makespan_ms
    for bank, plan in (("recompute", fast), ("broadcast", slow)):
        other = expected_ms(workload, COSTS, plan.batches, bank=bank, active=8, link={fast: FAST, slow: SLOW}[plan])
        assert other >= plan.makespan_ms


def test_the_bank_of_a_step_arrives_after_it_is_computed_one_at_a_time() -> None:
    workload = Workload(120, (20, 60, 100), 3)
    link = Link("link", 10.0, 2.0)  # 30 ms of bytes and 3 hops of 2 ms, beside 20 ms of computation a step
    times = bank_arrivals_ms(workload, COSTS, 4, link)
    assert times == [(34.0, 70.0), (54.0, 106.0), (74.0, 142.0)]
    assert replace(link, pattern="tree").broadcast_ms(10**7, 5) == pytest.approx(3 * (1 + 2))
    assert link.broadcast_ms(10**9, 1) == 0


def test_memory_is_weights_every_step_of_the_bank_and_the_largest_stage() -> None:
    assert memory_per_worker(COSTS, 10) == Memory(2 * 10**9, 3 * 10**9, 1_200_000_000)
    assert memory_per_worker(of(1, 2), 1).working == 900_000_000  # the autoencoder's
    assert memory_per_worker(of(5, 2), 1).working == 2_000_000_000  # phase A's


def _plan(memory_bytes: int, costs: StageCosts = COSTS, micro_batch: int | None = None) -> Placement:
    workload = Workload(120, tuple(range(costs.anchors)), 10)
    return plan_placement(workload, costs, num_workers=2, link=FAST, micro_batch=micro_batch, memory_bytes=memory_bytes)


def test_what_fits_exactly_is_taken_and_a_byte_less_refused() -> None:
    need = memory_per_worker(COSTS, 10).total
    assert _plan(need).memory.total == need
    with pytest.raises(InputError, match=r"needs 6\.20 GB .* only 6\.20 GB"):
        _plan(need - 1)


@pytest.mark.parametrize(
    ("memory_bytes", "costs", "remedies"),
    [
        (7_000_000_000, of(3, 8), ["micro_batch = 5", "anchors = 1", "long_side = 448", "dtype = float16"]),
        (6_100_000_000, COSTS, ["anchors = 2", "long_side = 448", "dtype = float16"]),
        (4_300_000_000, COSTS, ["anchors = 1", "long_side = 320", "dtype = float16"]),
        (2_100_000_000, COSTS, ["long_side = 64"]),
        (1_500_000_000, COSTS, ["dtype = float16 with long_side = 192"]),
    ],
)
def test_a_refusal_names_what_would_fit(memory_bytes: int, costs: StageCosts, remedies: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        _plan(memory_bytes, costs, costs.micro_batch)
    offered = str(refused.value).split("choose ")[1].removesuffix(".").split(" or ")
    assert offered == remedies
    for remedy in offered:
        changed = _remedied(costs, remedy)
        _plan(memory_bytes, changed, changed.micro_batch)


def _remedied(costs: StageCosts, remedy: str) -> StageCosts:
    """The costs after what a refusal proposes, worked out here a second time."""
    values = dict(re.findall(r"(\w+) = (\w+)", remedy))
    share = 0.5 if "dtype" in values else 1.0
    area = (int(values.get("long_side", 512)) / 512) ** 2
    anchors = int(values.get("anchors", costs.anchors))
    return replace(
        costs,
        anchors=anchors,
        micro_batch=int(values.get("micro_batch", costs.micro_batch)),
        weights_bytes=round(costs.weights_bytes * share),
        bank_step_bytes=round(costs.bank_step_bytes * share * area * anchors / costs.anchors),
        unet_frame_bytes=round(costs.unet_frame_bytes * share * area),
        vae_bytes=round(costs.vae_bytes * share * area),
    )


def test_where_nothing_would_do_it_says_so() -> None:
    with pytest.raises(InputError, match="use workers with more memory"):
        _plan(10**8)
    with pytest.raises(InputError, match="use workers with more memory"):
        _plan(2_000_000_000, replace(COSTS, precision="float16"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Workload(0, (), 10), "0 frames"),
        (lambda: Workload(5, (5,), 10), "Anchor 5 is not a frame"),
        (lambda: Workload(5, (1, 1), 10), "names a frame twice"),
        (lambda: Link("nothing", 0.0), "nothing at 0.0 GB/s"),
        (lambda: replace(COSTS, encode_ms=float("nan")), "encode_ms = nan"),
        (lambda: replace(COSTS, vae_bytes=-1), "vae_bytes = -1"),
        (lambda: replace(COSTS, micro_batch=0), "micro_batch = 0"),
        (lambda: plan_placement(Workload(9, (1,), 2), COSTS, num_workers=2, link=FAST), "costs are of 3 anchors"),
        (lambda: plan_placement(Workload(9, (1, 2, 3), 2), COSTS, num_workers=0, link=FAST), "num_workers = 0"),
        (lambda: StageCosts.from_json({**COSTS.to_json(), "more": 1}), "unknown field 'more'"),
        (lambda: StageCosts.from_json({"name": "x"}), "lack"),
    ],
)
def test_impossible_values_are_refused_with_a_sentence(make, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        make()


def test_costs_survive_json() -> None:
    assert StageCosts.from_json(COSTS.to_json()) == COSTS


def test_the_planner_needs_no_pytorch() -> None:
    code = "import sys, fairy.benchmarks.scaling.placement; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"
