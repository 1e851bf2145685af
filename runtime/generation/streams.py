"""Frames through a stage: windows are handed over as soon as what they read is there, results come in order.

Streams of stages are put behind each other; with several workers all stages' windows share them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fairy.runtime.generation.window_pool import Pending, WindowComputer
from fairy.runtime.generation.windows import StagePlan, Window
from fairy.runtime.record.progress import Monitor

Submit = Callable[[Window, Tensor], Pending]


def windows_of(
    frames: Iterator[Tensor], windows: Sequence[Window], submit: Submit, *, first: int, ahead: int
) -> Iterator[tuple[Window, Tensor]]:
    """Every window and what it makes, in order.

    Args:
        frames: float32 [3, H, W], number after number from `first` on.
        submit: hands a window and the frames it reads [F, 3, H, W] over.
        ahead: windows that may be handed over before a result is taken.
    """
    held: dict[int, Tensor] = {}
    pending: deque[tuple[Window, Pending]] = deque()
    number = first
    for window in windows:
        while number < window.reads[1]:
            held[number] = next(frames)
            number += 1
        for past in [n for n in held if n < window.reads[0]]:
            del held[past]
        pending.append((window, submit(window, torch.stack([held[n] for n in range(*window.reads)]))))
        if len(pending) > ahead:
            done, handed = pending.popleft()
            yield done, handed.result()
    for done, handed in pending:
        yield done, handed.result()


def window_at(windows: Sequence[Window], frame: int) -> int:
    """Which window makes a frame."""
    return next(i for i, window in enumerate(windows) if window.makes[0] <= frame < window.makes[1])


class Chain:
    """Stages behind each other, from frame `start` of what the last one makes.

    Attributes:
        begin: number of the first frame that must be handed in.
    """

    def __init__(
        self, plans: Sequence[StagePlan], computer: WindowComputer, monitor: Monitor, *, start: int = 0, seed: int = 0,
        text_2LC: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Nothing is computed yet.

        Args:
            seed: of the noise that stages begin with.
            text_2LC: features of the negative prompt and of the prompt, for stages that read text.
        """
        self._plans, self._computer, self._monitor, self._seed = tuple(plans), computer, monitor, seed
        self._text = text_2LC
        starts = [start]
        for plan in reversed(plans):
            starts.append(plan.windows[window_at(plan.windows, starts[-1])].reads[0])
        self.begin, *self._starts = reversed(starts)

    def frames(self, taken: Iterator[Tensor], *, one_by_one: bool = False) -> Iterator[Tensor]:
        """What the last stage makes of frames [3, H, W] that begin with number `begin`.

        Args:
            one_by_one: every stage ends before the next one begins.
        """
        for plan, start in zip(self._plans, self._starts, strict=True):
            made = self._stage(plan, start, taken)
            taken = iter(list(made)) if one_by_one else made
        return taken

    def _stage(self, plan: StagePlan, start: int, taken: Iterator[Tensor]) -> Iterator[Tensor]:
        stage, done = plan.stage, window_at(plan.windows, start)
        windows = plan.windows[done:]

        def submit(window: Window, frames: Tensor) -> Pending:
            if stage.kind == "interpolation":
                return self._computer.submit("interpolate", stage, window, frames)
            return self._computer.submit("super_resolve", stage, window, frames, self._seed, plan.fps, self._text)

        for window, made in windows_of(taken, windows, submit, first=windows[0].reads[0], ahead=self._computer.ahead):
            done += 1
            self._monitor.tell(stage.name, done, len(plan.windows))
            for number, frame in zip(range(*window.makes), made, strict=True):
                if number >= start:
                    yield frame
