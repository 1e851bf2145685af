"""In which order an editing method computes: batches of units that are ready, a unit being one step of one frame.

Unit (i, k) needs (i, k − 1), the step before, and (j, k) for every frame j whose keys and values frame i reads. From
that alone follow the orders:

    parallel    the frames that others read, all steps; then the other frames in parts, each through all its steps: no
                unit waits for another one, so tasks are whole (see `tasks.py`)
    wavefront   all units that are ready at once: frame i begins as many waves late as its longest chain of sources
                is long, so that a video of N frames in T steps takes N + T − 1 waves where each frame reads the last
    step-major  one unit at a time, all frames at a step before the next step: keeps the fewest keys and values

`sources[i]` is S(i), the frames that frame i reads, in the order of their segments.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, get_args

from fairy.kernels.errors import InputError

Order = Literal["parallel", "wavefront", "step-major"]
ORDERS: tuple[Order, ...] = get_args(Order)
UNITS_AT_ONCE = 8  # of a wave, unless the user says otherwise: keeps a GPU busy, and few copies of keys and values


class Unit(NamedTuple):
    """One denoising step of one frame; both count from 0."""

    frame: int
    step: int


Batch = tuple[Unit, ...]


def ready_units(order: Order, sources: Sequence[tuple[int, ...]], num_inference_steps: int) -> Iterator[Batch]:
    """Every unit once, in batches whose units need none of their own batch.

    Args:
        order: "wavefront" or "step-major"; what is "parallel" has no units.
        sources: S(i) of every frame.
        num_inference_steps: steps of every frame.
    """
    if order == "wavefront":
        return _waves(sources, num_inference_steps)
    return ((Unit(i, k),) for k in range(num_inference_steps) for i in range(len(sources)))


def check_causal(name: str, sources: Sequence[tuple[int, ...]]) -> None:
    """Refuse a rule that no order but "parallel" can serve. Raises InputError for a frame that reads no earlier one."""
    for i, read in enumerate(sources):
        if not all(0 <= j < i for j in read):
            raise InputError(
                f"Method {name!r} lets frame {i} read frames {list(read)}; frames can only read earlier ones."
            )


def alike(units: Iterable[Unit], sources: Sequence[tuple[int, ...]], at_once: int) -> Iterator[Batch]:
    """A batch cut into batches of at most `at_once` whose frames read equally many others: those one graph serves."""
    for _, group in groupby(units, key=lambda unit: len(sources[unit.frame])):
        same = tuple(group)
        for start in range(0, len(same), at_once):
            yield same[start : start + at_once]


def readers(sources: Sequence[tuple[int, ...]]) -> Counter[int]:
    """How many frames read each frame."""
    return Counter(j for read in sources for j in set(read))


def most_kept(order: Order, sources: Sequence[tuple[int, ...]], num_inference_steps: int, at_once: int) -> int:
    """The largest number of units whose keys and values are in memory at once.

    These are the units that later ones still read, those of the batch that is being computed, and a copy of what that
    batch reads, side by side as a graph takes it.
    """
    waiting: dict[Unit, int] = {}
    wanted = readers(sources)
    most = 0
    for ready in ready_units(order, sources, num_inference_steps):
        for batch in alike(ready, sources, at_once):
            width = len(sources[batch[0].frame])
            most = max(most, len(waiting) + len(batch) * (1 + width))
            waiting |= {unit: wanted[unit.frame] for unit in batch if wanted[unit.frame]}
            for i, k in batch:
                forget(waiting, (Unit(j, k) for j in set(sources[i])))
    return most


def forget(waiting: dict[Unit, int], read: Iterable[Unit]) -> list[Unit]:
    """Count one reading of each of these units, and drop and return those that nobody will read again."""
    dropped = []
    for unit in read:
        waiting[unit] -= 1
        if waiting[unit] == 0:
            del waiting[unit]
            dropped.append(unit)
    return dropped


def depths(sources: Sequence[tuple[int, ...]]) -> list[int]:
    """The length of every frame's longest chain of sources: the wave in which it begins.

    Unit (i, k) waits for (i, k − 1) and for (j, k) of its sources; by induction it is ready in wave depth(i) + k.
    """
    found: list[int] = []
    for read in sources:
        found.append(1 + max((found[j] for j in read), default=-1))
    return found


def _waves(sources: Sequence[tuple[int, ...]], num_inference_steps: int) -> Iterator[Batch]:
    begin = depths(sources)
    beginning: dict[int, list[int]] = {}
    for frame, wave in enumerate(begin):
        beginning.setdefault(wave, []).append(frame)
    active: list[int] = []
    for wave in range(max(begin) + num_inference_steps):
        active = [i for i in active if wave - begin[i] < num_inference_steps]
        active = sorted([*active, *beginning.get(wave, ())])
        yield tuple(Unit(i, wave - begin[i]) for i in active)
