"""Who edits a fleet's clips, and how long anyone is waited for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.options import Flag, Number, Text, Whole, check_options, option

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """Who edits, and how long anyone is waited for.

    Raises:
        InputError: a value is impossible.
    """

    ray: str | None = option(
        None,
        Text(),
        "A Ray cluster: local (of this machine), auto or HOST:PORT",
        usual="one after another, here",
    )
    editors: int | None = option(None, Whole(1, 4096), "At most so many at once", usual="what there is room for")
    gpus_per_editor: int | None = option(None, Whole(0, 64), "GPUs of each; 0 = the CPU", usual="1 where there are")
    item_timeout_s: float = option(
        DAY_S, Number(0, math.inf, above=True), "Seconds after which a clip is given up", flag="item-timeout"
    )
    start_timeout_s: float = option(
        600.0, Number(0, math.inf, above=True), "Seconds to wait for the first editor", flag="start-timeout"
    )
    retries: int = option(2, Whole(0, 100), "How often an editor that was lost is started again, with its clip")
    resume: bool = option(False, Flag(), "Go on within clips that were interrupted; a lost editor's clip always does")

    def __post_init__(self) -> None:
        check_options(self)
        if self.ray is not None and (not self.ray.strip() or "://" in self.ray):
            remedy = "give local, auto or HOST:PORT, on a machine of the cluster"
            raise InputError("is not served", name="ray", value=self.ray, remedy=remedy)
        if self.ray is None and self.editors not in (None, 1):
            remedy = "say where it runs (ray, --ray), or leave it out"
            raise InputError("is for Ray", name="editors", value=self.editors, remedy=remedy)


def with_gpus(setup: EditorSetup, gpus: int | None, *, gpus_at_hand: bool, placed_by_ray: bool) -> EditorSetup:
    """The setup with "auto" resolved as far as the number of GPUs decides it.

    Args:
        gpus: GPUs of each editor, 0 = CPU, None = one where `gpus_at_hand` and the device allow it.

    Raises:
        InputError: number and device contradict each other, or the device names one GPU where Ray chooses it.
    """
    if placed_by_ray and ":" in setup.device:
        raise InputError("names one GPU, but Ray chooses it", name="device", value=setup.device, remedy="say cuda")
    if gpus is None:
        gpus = 1 if setup.device.startswith("cuda") or (setup.device == "auto" and gpus_at_hand) else 0
    if (gpus > 0 and setup.device == "cpu") or (gpus == 0 and setup.device.startswith("cuda")):
        problem = f"contradicts the device {setup.device}"
        raise InputError(problem, name="gpus_per_editor", value=gpus, remedy="change one of them")
    device = setup.device if setup.device != "auto" else ("cuda" if gpus else "cpu")
    return replace(setup, device=device, gpus=max(1, gpus))


def room_for_editors(nodes: list[Mapping[str, Any]], *, cpus: int, gpus: int) -> int:
    """How many editors the nodes of a cluster have room for, by the resources they were started with.

    Args:
        nodes: as `ray.nodes()` gives them.
        cpus, gpus: what each editor takes.
    """
    total = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            total += min(int(has.get(name, 0) // wants) for name, wants in (("CPU", cpus), ("GPU", gpus)) if wants)
    return total
