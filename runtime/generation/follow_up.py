"""What an edit may be followed by before it is written: larger frames, frames between frames; no lossy file between."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fairy.kernels.errors import InputError
from fairy.runtime.generation.clocks import finer_clock
from fairy.runtime.generation.networks import CascadeNetworks
from fairy.runtime.generation.pictures import to_float, to_uint8
from fairy.runtime.generation.streams import Chain
from fairy.runtime.generation.window_pool import HereComputer
from fairy.runtime.generation.windows import StagePlan, interpolation_windows, regular_places, super_resolution_windows
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.models import embedded_generator
from fairy.runtime.record.progress import Monitor
from fairy.runtime.video import MAX_PIXELS, Clock

TIMES = 2


class FollowUp:
    """Stages of the embedded generator behind an edit.

    Attributes:
        num_frames, size, clock: of what is written, size as (height, width).
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        num_frames: int,
        size: tuple[int, int],
        clock: Clock | None,
        cuts: Sequence[int],
        monitor: Monitor,
        threads: int,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path | None = None,
    ) -> None:
        """Decide the windows of every stage.

        Args:
            names: of `plan.file_request.FOLLOW_UPS`, in their order.
            num_frames, size, clock: of the edited frames; cuts: those of them before which another shot begins.

        Raises:
            InputError: the frames would become too large.
        """
        networks = CascadeNetworks(folder or embedded_generator(), device, dtype)
        self._computer, self._monitor = HereComputer(networks, threads), monitor
        self._plans: list[StagePlan] = []
        stages = networks.cascade.stages
        for name in names:
            if name == "interpolate":
                stage = next(stage for stage in stages if stage.kind == "interpolation")
                windows = interpolation_windows(regular_places(num_frames, TIMES), num_frames, cuts)
                num_frames, cuts = (num_frames - 1) * TIMES + 1, [cut * TIMES for cut in cuts]
                clock = None if clock is None else finer_clock(clock, TIMES)
            else:
                stage = next(stage for stage in stages if stage.kind == "super_resolution")
                windows = super_resolution_windows(stage, num_frames, cuts)
                size = size[0] * stage.scale, size[1] * stage.scale
                if size[0] * size[1] > MAX_PIXELS:
                    remedy = f"at most {MAX_PIXELS} pixels can be written; choose a smaller long_side"
                    raise InputError(
                        f"would make {size[1]}×{size[0]}", name="then", value=",".join(names), remedy=remedy
                    )
            self._plans.append(StagePlan(stage, windows))
        self.num_frames, self.size, self.clock = num_frames, size, clock

    def frames(self, edited: Iterator[Frames]) -> Iterator[Frames]:
        """The frames to write, uint8 [H, W, 3], of the edited ones."""
        return map(to_uint8, Chain(self._plans, self._computer, self._monitor).frames(map(to_float, edited)))

    @property
    def sentence(self) -> str:
        """What is done, for a report."""
        height, width = self.size
        names = " and ".join(plan.stage.name.replace("_", "-") for plan in self._plans)
        return f"After the edit came {names}: {self.num_frames} frames of {width}×{height} were written."
