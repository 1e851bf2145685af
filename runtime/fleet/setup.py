"""How the editors of a fleet are made, and how long anyone waits for them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path

if TYPE_CHECKING:
    from fairy.runtime.editor import Editor

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class EditorSetup:
    """What every editor of a fleet is made with; the arguments of `Editor.from_pretrained` of the same names."""

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    store: Path | None = None
    gpus: int = 1
    threads: int = 1
    decoder: str | None = None

    def absolute(self) -> "EditorSetup":
        """The same with folders and a store that another process finds too, whatever its folder is."""
        model, decoder = (_absolute_folder(name) for name in (self.model, self.decoder))
        store = None if self.store is None else user_path(self.store)
        return replace(self, model=model, decoder=decoder, store=store)

    def open(self) -> "Editor":
        """Load the model. Raises InputError as `Editor.from_pretrained` does."""
        from fairy.runtime.editor import Editor

        return Editor.from_pretrained(
            self.model,
            device=self.device,
            dtype=self.dtype,
            backend=self.backend,
            store=self.store,
            gpus=self.gpus,
            threads=self.threads,
            decoder=self.decoder,
        )


def _absolute_folder(name: str | None) -> str | None:
    """The path of a folder; a hub id, or a decoder's name, stays as it is."""
    if name is None or name == "tiny" or not user_path(name).is_dir():
        return name
    return str(user_path(name))


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """Who edits, and how long anyone is waited for.

    Attributes:
        ray: None = this process; "local" = a Ray cluster of this machine that is started and ended with the job;
            "auto" or "HOST:PORT" = one that runs.
        editors: at most so many at once; None = as many as the cluster has room for.
        gpus_per_editor: GPUs of each; 0 = the CPU; None = one where there are some and the device is not "cpu".
        item_timeout_s: seconds after which a clip that was handed to an editor is given up.
        start_timeout_s: seconds that the first editor may take to be ready, placement and loading included.
        retries: how often an editor that was lost is started again, with the clip it had.
        resume: go on where interrupted edits of the same clips stopped; a clip whose editor was lost always does.

    Raises:
        InputError: a value is impossible.
    """

    ray: str | None = None
    editors: int | None = None
    gpus_per_editor: int | None = None
    item_timeout_s: float = DAY_S
    start_timeout_s: float = 600.0
    retries: int = 2
    resume: bool = False

    def __post_init__(self) -> None:
        if self.ray is not None and (not self.ray.strip() or "://" in self.ray):
            raise InputError(
                f"ray = {self.ray!r} is not served; give local, auto or HOST:PORT, on a machine of the cluster."
            )
        _check_whole("editors", self.editors, 1, 4096)
        _check_whole("gpus_per_editor", self.gpus_per_editor, 0, 64)
        _check_whole("retries", self.retries, 0, 100)
        for name in ("item_timeout_s", "start_timeout_s"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
                raise InputError(f"{seconds!r} s is no possible deadline; {name} must be a number of seconds above 0.")
        if self.ray is None and self.editors not in (None, 1):
            raise InputError(f"editors = {self.editors} is for Ray; say where it runs (ray, --ray), or leave it out.")


def with_gpus(setup: EditorSetup, gpus: int | None, *, gpus_at_hand: bool, placed_by_ray: bool) -> EditorSetup:
    """The setup with "auto" resolved as far as the number of GPUs decides it.

    Args:
        gpus: GPUs of each editor, 0 = CPU, None = one where `gpus_at_hand` and the device allow it.

    Raises:
        InputError: number and device contradict each other, or the device names one GPU where Ray chooses it.
    """
    if placed_by_ray and ":" in setup.device:
        raise InputError(f"device = {setup.device!r} names one GPU, but Ray chooses it; say cuda.")
    if gpus is None:
        gpus = 1 if setup.device.startswith("cuda") or (setup.device == "auto" and gpus_at_hand) else 0
    if (gpus > 0 and setup.device == "cpu") or (gpus == 0 and setup.device.startswith("cuda")):
        raise InputError(f"gpus_per_editor = {gpus} contradicts the device {setup.device}; change one of them.")
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


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise InputError(f"{name} = {value!r} is not possible; it must be a whole number from {low} to {high}.")
