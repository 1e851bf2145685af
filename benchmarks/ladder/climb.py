"""Runs the rungs in turns and makes figures of their laps: one record a rung, and the table.

The time of a clip is computed from its measured parts: phase A and micro-batches of phase B, each the first step and
nine times a later one, and the autoencoder for every frame. Video files, and the text's encoding, are not part of it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from fairy.benchmarks.ladder.case import BRANCHES, Case, Lap, Rung, clock_of, matmul_tflop_per_s
from fairy.benchmarks.ladder.networks import Flops, count_flops
from fairy.benchmarks.ladder.ours import OurRung
from fairy.benchmarks.ladder.rivals import BatchedRung, PipelineRung
from fairy.benchmarks.nvml import energy_j, throttle_reasons
from fairy.benchmarks.records import Quality, Record, make_record
from fairy.benchmarks.timing import summarise
from fairy.engines.backends import serves
from fairy.export.steps import ALL_STEPS, EXACT_STEPS, STEPS, Steps, check_steps, choose_steps
from fairy.kernels.errors import InputError

CLIP_FRAMES, CLIP_STEPS = 120, 10
APPROXIMATE = ALL_STEPS - EXACT_STEPS
_NEED_COMPILING = {"inductor", "cuda-graphs"}
_ENERGY_S = 3.0  # NVML's counter moves in steps of up to 0.1 s
COLUMNS = (
    "rung",
    "s",
    "p20…p80",
    "frames/s",
    "ms/forward",
    "TFLOP/s",
    "of matmul",
    "work MiB",
    "J/frame",
    "difference",
)


@dataclass(frozen=True, slots=True)
class Climb:
    """What is asked for.

    Attributes:
        rungs: keys of rungs: a, b, c, d (ours without steps) or a step (ours with it and those before); None = all.
        without: steps that no rung of ours has.
        compiled: whether torch.compile is used: in b and c, and as the step inductor.
        repeats: passes of every rung, its first one apart.
    """

    rungs: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    compiled: bool = True
    repeats: int = 5

    def __post_init__(self) -> None:
        check_steps(self.without)
        if self.repeats < 1:
            raise InputError(
                "is not possible", name="repeats", value=self.repeats, remedy="give a whole number from 1 up"
            )


def make_rungs(case: Case, climb: Climb) -> list[Rung]:
    """The rungs that are asked for, lowest first. Raises InputError where there is none of a key."""
    steps = ladder_of(case.device.type, climb, approximate=serves("compiled", case.device, APPROXIMATE))
    known = ("a", "b", "c", "d", *steps)
    unknown = [key for key in climb.rungs or () if key not in known]
    if unknown:
        raise InputError(f"There is no rung {unknown[0]!r} here; choose from {', '.join(known)}.")
    makers: dict[str, Callable[[], Rung]] = {
        "a": lambda: PipelineRung(case),
        "b": lambda: BatchedRung(case, anchored=False, compiled=climb.compiled),
        "c": lambda: BatchedRung(case, anchored=True, compiled=climb.compiled),
        "d": lambda: OurRung(case, "d", "ours, without steps", frozenset()),
    }
    on: Steps = frozenset()
    for step in steps:
        on = on | {step}
        name = f"+ {step}" if step in EXACT_STEPS else f"+ {step}, approximate"
        makers[step] = lambda step=step, name=name, on=on: OurRung(case, step, name, on)  # type: ignore[misc]
    return [make() for key, make in makers.items() if climb.rungs is None or key in climb.rungs]


def ladder_of(device: str, climb: Climb, *, approximate: bool = True) -> tuple[str, ...]:
    """The steps of our rungs, in the list's order; those that are not exact are the last."""
    chosen = choose_steps(climb.without, device, APPROXIMATE if approximate else ())
    if not climb.compiled:
        chosen = chosen - _NEED_COMPILING
    return tuple(step.name for step in STEPS if step.name in chosen)


Tell = Callable[[str], object]
Keep = Callable[[list[Record]], object]


def run_climb(
    case: Case, climb: Climb, tell: Tell = lambda line: None, keep: Keep = lambda records: None
) -> list[Record]:
    """Warm every rung up, run all in turns, and make records of it.

    Args:
        tell: hears what is going on.
        keep: is given the records so far whenever there is more to them: a climb that is stopped keeps its rungs.
    """
    rungs = make_rungs(case, climb)
    tell("computing the reference: eager, float32")
    references = _references(case)
    flops, ceiling = count_flops(case.size), matmul_tflop_per_s(case.device, case.dtype)
    first: dict[str, Lap] = {}
    laps: dict[str, list[Lap]] = {rung.key: [] for rung in rungs}
    watts: dict[str, float | None] = {}
    throttled = throttle_reasons(case.device)

    def records() -> list[Record]:
        return [
            _record(case, climb, rung, laps[rung.key], _difference(first[rung.key], references[rung.anchored]),
                    flops, ceiling, watts.get(rung.key), tuple(sorted(throttled)))
            for rung in rungs if laps[rung.key]
        ]  # fmt: skip

    for turn in range(climb.repeats):
        tell(f"turn {turn + 1} of {climb.repeats}")
        for rung in rungs:
            if turn == 0:
                started = time.perf_counter()
                first[rung.key] = rung.run()
                tell(f"{rung.name}: first pass in {time.perf_counter() - started:.1f} s")
            laps[rung.key].append(rung.run())
            keep(records())
    throttled |= throttle_reasons(case.device)
    for rung in rungs:
        watts[rung.key] = _watts(rung, case.device)
    return records()


def clip_ms(lap: Lap, case: Case) -> float:
    """Milliseconds of a clip of 120 frames at 10 steps, computed from one pass."""
    later = CLIP_STEPS - 1
    anchors = case.size.anchors if lap.anchors_ms else 0
    batches = math.ceil((CLIP_FRAMES - anchors) / lap.frames)
    total = CLIP_FRAMES * (lap.encode_ms + lap.decode_ms) + batches * (lap.frames_ms[0] + later * lap.frames_ms[1])
    if lap.anchors_ms:
        total += lap.anchors_ms[0] + later * lap.anchors_ms[1]
    return total


def unet_ms(lap: Lap, case: Case) -> float:
    """The part of `clip_ms` that the UNet and the sampler take."""
    return clip_ms(lap, case) - CLIP_FRAMES * (lap.encode_ms + lap.decode_ms)


def clip_flops(flops: Flops, case: Case, *, anchored: bool) -> int:
    """Operations that the plain form takes for such a clip: steps that save some are faster, not smaller."""
    forwards = CLIP_STEPS * BRANCHES
    anchors = case.size.anchors if anchored else 0
    frame = flops.unet["unet_frame" if anchored else "unet"]
    unet = forwards * (anchors * flops.unet["unet_anchor"] + (CLIP_FRAMES - anchors) * frame)
    return unet + CLIP_FRAMES * (flops.encode + flops.decode)


def _record(
    case: Case, climb: Climb, rung: Rung, laps: Sequence[Lap], difference: float,
    flops: Flops, ceiling: float, watts: float | None, throttled: tuple[str, ...],
) -> Record:  # fmt: skip
    timing = summarise([clip_ms(lap, case) for lap in laps], f"computed from parts, {clock_of(case.device)}", throttled)
    seconds = timing.median_ms / 1e3
    rate = clip_flops(flops, case, anchored=rung.anchored) / seconds / 1e12
    forwards = CLIP_FRAMES * CLIP_STEPS * BRANCHES
    works = [lap.work_bytes for lap in laps if lap.work_bytes is not None]
    figures = {
        "frames_per_s": CLIP_FRAMES / seconds,
        "ms_per_sample_forward": median(unet_ms(lap, case) for lap in laps) / forwards,
        "tflop_per_s": rate,
        "of_matmul": rate / ceiling,
        "matmul_tflop_per_s": ceiling,
        "work_bytes": max(works, default=None),
        "joules_per_frame": None if watts is None else watts * seconds / CLIP_FRAMES,
        "parts_ms": _parts(laps),
    }
    tolerance = 1e-4 if case.dtype == torch.float32 else 2e-2
    quality = {"difference": Quality(difference, "lower", tolerance)}
    recipe = _recipe(case, climb, rung)
    return make_record(rung.name, recipe, case.device, timing=timing, quality=quality, figures=figures)


def _recipe(case: Case, climb: Climb, rung: Rung) -> dict[str, Any]:
    size = case.size
    return {
        "benchmark": "ladder", "rung": rung.key, "size": size.name, "height": size.height, "width": size.width,
        "micro_batch": size.frames, "anchors": size.anchors, "branches": BRANCHES, "clip_frames": CLIP_FRAMES,
        "clip_steps": CLIP_STEPS, "precision": str(case.dtype).removeprefix("torch."), "compiled": climb.compiled,
        "without": sorted(climb.without), "unet": size.unet, "vae": size.vae,
    }  # fmt: skip


def _parts(laps: Sequence[Lap]) -> dict[str, float | None]:
    """Medians of the measured parts, in milliseconds."""
    found: dict[str, float | None] = {
        "encode a frame": median(lap.encode_ms for lap in laps),
        "decode a frame": median(lap.decode_ms for lap in laps),
        "first step of a batch": median(lap.frames_ms[0] for lap in laps),
        "later step of a batch": median(lap.frames_ms[1] for lap in laps),
    }
    anchors = [lap.anchors_ms for lap in laps if lap.anchors_ms]
    for i, name in enumerate(("first step of the anchors", "later step of the anchors")):
        found[name] = median(pair[i] for pair in anchors) if anchors else None
    return found


def _references(case: Case) -> dict[bool, Tensor]:
    """Eager's latents in float32, with anchors and without."""
    networks = case.networks
    if case.dtype != torch.float32:
        parts: dict[str, Any] = {name: _wide(getattr(networks, name)) for name in ("unet", "vae")}
        networks = replace(networks, **parts)
    changes = {name: getattr(case, name).float() for name in ("pictures", "image_latents", "text")}
    wide = replace(case, dtype=torch.float32, networks=networks, **changes)
    eager = OurRung(wide, "eager", "eager", None)
    return {True: eager.run().latents, False: eager.without_anchors()}


def _wide(net: nn.Module) -> nn.Module:
    import copy

    return nn.Module.to(copy.deepcopy(net), torch.float32)


def _difference(lap: Lap, reference: Tensor) -> float:
    """The largest difference of a latent, relative to the largest latent."""
    return float((lap.latents - reference).abs().max() / reference.abs().max())


def _watts(rung: Rung, device: torch.device) -> float | None:
    """Mean power of a rung while it runs for some seconds; None where the device does not tell."""
    before = energy_j(device)
    if before is None:
        return None
    started = time.perf_counter()
    while time.perf_counter() - started < _ENERGY_S:
        rung.run()
    after, seconds = energy_j(device), time.perf_counter() - started
    return None if after is None else (after - before) / seconds


def table(records: Sequence[Record]) -> str:
    """The rungs as text, in aligned columns."""
    lines = [COLUMNS, *(_texts(record) for record in records)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    rows = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
    return "\n".join(rows)


def _texts(record: Record) -> tuple[str, ...]:
    timing, figures = record.timing, record.figures
    assert timing is not None
    work, joules = figures["work_bytes"], figures["joules_per_frame"]
    return (
        record.name,
        f"{timing.median_ms / 1e3:.4g}",
        f"{timing.p20_ms / 1e3:.4g}…{timing.p80_ms / 1e3:.4g}",
        f"{figures['frames_per_s']:.3g}",
        f"{figures['ms_per_sample_forward']:.4g}",
        f"{figures['tflop_per_s']:.3g}",
        f"{figures['of_matmul']:.0%}",
        "-" if work is None else f"{work / 2**20:.0f}",
        "-" if joules is None else f"{joules:.3g}",
        f"{record.quality['difference'].value:.1e}",
    )
