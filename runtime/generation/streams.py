"""Frames through a stage: windows are handed over as soon as what they read is there, results come in order.

Streams of stages are put behind each other; with several workers all stages' windows share them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fairy.runtime.generation.window_pool import Pending
from fairy.runtime.generation.windows import Window

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


def frames_of(
    frames: Iterator[Tensor],
    windows: Sequence[Window],
    submit: Submit,
    *,
    start: int,
    ahead: int,
    tell: Callable[[int], object] = lambda done: None,
) -> tuple[int, Iterator[Tensor]]:
    """A stage as a stream that begins at frame `start` of what it makes.

    Returns:
        the number of the first frame that must be handed in, and the stream. `frames` must begin there; it is asked
        for nothing before the stream is.
    """
    begin = window_at(windows, start)

    def stream() -> Iterator[Tensor]:
        done = begin
        for window, made in windows_of(frames, windows[begin:], submit, first=windows[begin].reads[0], ahead=ahead):
            done += 1
            tell(done)
            for number, frame in zip(range(*window.makes), made, strict=True):
                if number >= start:
                    yield frame

    return windows[begin].reads[0], stream()


def window_at(windows: Sequence[Window], frame: int) -> int:
    """Which window makes a frame."""
    return next(i for i, window in enumerate(windows) if window.makes[0] <= frame < window.makes[1])
