"""What an interrupted edit leaves behind, so that it can go on: OUT.job, the latents of every finished micro-batch.

    OUT.job/identity-1f2e3d4c5b6a.json         everything that decides the bytes of the result
    OUT.job/000012-1f2e3d4c5b6a.safetensors    part 12: latents [frames, c, h, w] float32, with the identity's hash
                                               and their own
    OUT.job/anchors-0-1f2e3d4c5b6a.safetensors the same of the anchors of segment 0
    OUT.job/base-1f2e3d4c5b6a.safetensors      of a generated clip: the base stage's frames, and its parts are
                                               finished frames, uint8 [frames, h, w, 3], numbered by their first

The name's end is the beginning of the identity's hash: an edit with another option finds nothing of its own there, and
spoils nothing. A file appears under its name only when it is whole. What is wrong, or belongs to another edit, is never
used. The folder is removed when the edited video is in its place.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairy.kernels.errors import FairyError
from fairy.runtime.files import cut_to_bytes, write_atomically
from fairy.runtime.video.formats import OUTPUTS

_SUFFIX = ".job"
_LONGEST_NAME_BYTES = 255
_OURS = re.compile(
    r"(\d{6,}|anchors-\d+|base)-[0-9a-f]{12}\.safetensors|identity-[0-9a-f]{12}\.json"
    r"|\.(identity|anchors|base|\d+)-.*\.part"
)


def journal_folder(out: Path) -> Path:
    """Where the journal of the edit into `out` lies; a very long name is cut and told apart by its hash."""
    whole = os.fsencode(out.name)
    if len(whole) <= _LONGEST_NAME_BYTES - len(_SUFFIX):
        return out.with_name(out.name + _SUFFIX)
    end = f".{hashlib.sha256(whole).hexdigest()[:8]}{_SUFFIX}"
    return out.with_name(cut_to_bytes(out.name, _LONGEST_NAME_BYTES - len(end)) + end)


def folders_of_other_containers(out: Path) -> list[Path]:
    """Where edits into files of the same name with other endings have left their journals."""
    names = (out.with_suffix(ending) for known in OUTPUTS for ending in (known, known.upper()))
    folders = (journal_folder(name) for name in names if name != out)
    return [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]


class Journal:
    """The finished micro-batches of one edit of a file. One thread at a time may use it."""

    def __init__(
        self, folder: Path, identity: dict[str, Any], *, spare_bytes: int = 0, others: Sequence[Path] = ()
    ) -> None:
        """Nothing is read or written yet.

        Args:
            spare_bytes: what of the disk is for the edited video, not for the journal.
            others: folders in which the same edit into another container may have left its parts.
        """
        self._folder, self._others = folder, others
        self._text = json.dumps(identity, indent=2, sort_keys=True, default=str)
        self._digest = hashlib.sha256(self._text.encode()).hexdigest()
        self._identity = json.loads(self._text)
        self._spare_bytes = spare_bytes
        self._reads = False
        self._written = False
        self._resumed: set[int] = set()
        self._pending: dict[int, tuple[Tensor, str]] = {}  # anchors, of no use before a part is there
        self.notes: list[str] = []

    @property
    def resumed(self) -> int:
        """How many parts were not computed again."""
        return len(self._resumed)

    @property
    def kept(self) -> int:
        """How many parts of this edit lie in the folder, for it or for a later one to go on from."""
        return len(list(self._folder.glob(self._path_name("[0-9]*"))))

    def begin(self, *, resume: bool) -> None:
        """Look at what an earlier edit left. It is used only where it is this edit's and `resume` is set."""
        if resume and self._difference() is not None:
            self._adopt()
        if not self._folder.is_dir() or self._folder.is_symlink():
            if resume:
                self.notes.append(f"There is no {self._folder.name}; the edit began from the start.")
            return
        difference = self._difference()
        if resume and difference is None:
            self._reads = True
        elif resume:
            self.notes.append(f"{self._folder.name} is of another edit ({difference}); the edit began from the start.")
        elif difference is None and (found := self.kept):
            self.notes.append(
                f"{self._folder.name} held {found} finished micro-batches of this very edit, which were computed "
                "again; with --resume (resume = True) it would have gone on from them."
            )

    def has(self, part: int) -> bool:
        """Whether a part may be used; what is damaged shows only when it is loaded."""
        return self._reads and self._path(f"{part:06d}").is_file()

    def load(self, part: int) -> Tensor | None:
        """The latents of a part, or None where there are none that can be trusted."""
        found = self._load(f"{part:06d}", str(part))
        if found is not None:
            self._resumed.add(part)
        return None if found is None else found[0]

    def load_anchors(self, segment: int) -> tuple[Tensor, str] | None:
        """The latents of a segment's anchors, and the precision that they needed."""
        return self._load(f"anchors-{segment}", f"anchors {segment}")

    def save(self, part: int, latents: Tensor) -> None:
        """Keep the latents of a finished part; a disk that does not take them costs the journal, not the edit."""
        self._save(f"{part:06d}", str(part), latents, "")
        while self._pending:
            segment, (anchors, precision) = self._pending.popitem()
            self._save(f"anchors-{segment}", f"anchors {segment}", anchors, precision)

    def save_anchors(self, segment: int, latents: Tensor, precision: str) -> None:
        """Keep the latents of a segment's anchors, and the precision that they needed, once a part is finished too."""
        self._pending[segment] = latents, precision

    def save_frames(self, first: int, frames: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Keep finished frames uint8 [n, h, w, 3] of a generated clip, from number `first` on."""
        self._save(f"{first:06d}", f"frames {first}", torch.from_numpy(frames), "")

    def load_frames(self, first: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """Finished frames from number `first` on, or None where there are none that can be trusted."""
        found = self._load(f"{first:06d}", f"frames {first}")
        return None if found is None else found[0].numpy()

    def save_base(self, frames: Tensor) -> None:
        """Keep the base stage's frames, float32 [n, 3, h, w]."""
        self._save("base", "base", frames, "")

    def load_base(self) -> Tensor | None:
        """The base stage's frames, or None where there are none that can be trusted."""
        found = self._load("base", "base")
        return None if found is None else found[0]

    def _load(self, name: str, part: str) -> tuple[Tensor, str] | None:
        path = self._path(name)
        if not self._reads or not path.is_file() or path.is_symlink():
            return None
        precision = ""
        try:
            with safe_open(path, "pt") as file:
                told, latents = file.metadata() or {}, file.get_tensor("latents")
            precision = told.get("precision", "")
            good = told == self._told(part, latents, precision)
        except (SafetensorError, OSError, ValueError):
            good = False
        if not good:
            self.notes.append(f"{path.name} in {self._folder.name} is damaged; those frames were computed again.")
            return None
        return latents, precision

    def _save(self, name: str, part: str, latents: Tensor, precision: str) -> None:
        whole = latents.detach().cpu().contiguous()
        whole = whole if whole.dtype == torch.uint8 else whole.float()
        try:
            if self._folder.is_symlink():
                raise OSError(f"{self._folder.name} is a link")
            free = shutil.disk_usage(self._folder.parent).free
            if free < self._spare_bytes + 2 * whole.nbytes:
                raise OSError(f"{free / 1e6:.1f} MB are free, which the edited video needs")
            if not self._written:
                self._folder.mkdir(exist_ok=True)
                write_atomically(self._folder / self._identity_name, self._text.encode())
                self._written = True
            write_atomically(self._path(name), save({"latents": whole}, self._told(part, whole, precision)))
        except (FairyError, OSError) as error:
            sentence = f"{self._folder.name} could not be written; an interrupted edit would begin earlier ({error})"
            if not any(note.startswith(sentence[:40]) for note in self.notes):
                self.notes.append(sentence)

    @contextmanager
    def kept_unless_done(self) -> Iterator[None]:
        """The edit itself: the journal is removed after it; an error before gets a note of what is kept."""
        try:
            yield
        except BaseException as error:
            if self.kept:
                error.add_note(
                    f"what was finished is kept in {self._folder}; add --resume to go on from there, or to write it "
                    "into another container, by another ending of the same name, without computing that again."
                )
            raise
        self._remove()

    def _adopt(self) -> None:
        """Use the folder of the same edit into another container, where there is one: latents know no container."""
        for other in self._others:
            if (other / self._identity_name).is_file() and self._difference(other) is None:
                self.notes.append(f"The edit went on from {other.name}, which holds this very edit.")
                self._folder = other
                return

    def _told(self, part: str, latents: Tensor, precision: str) -> dict[str, str]:
        """What a part's file says of itself."""
        told = {"identity": self._digest, "part": part, "sha256": _sha256(latents)}
        return told | ({"precision": precision} if precision else {})

    def _difference(self, folder: Path | None = None) -> str | None:
        """What about the edit that left the journal is not this one's; None where it holds this one's."""
        folder = folder or self._folder
        own = folder / self._identity_name
        others = sorted(folder.glob("identity-*.json"), key=lambda path: path.stat().st_mtime)
        latest = own if own in others else next(reversed(others), own)
        try:
            theirs = json.loads(latest.read_bytes()[: 1 << 24])
        except (OSError, ValueError):
            return "its identity cannot be read"
        if not isinstance(theirs, dict):
            return "its identity cannot be read"
        names = sorted({*theirs, *self._identity})
        return next((f"another {name}" for name in names if theirs.get(name) != self._identity.get(name)), None)

    @property
    def _identity_name(self) -> str:
        return f"identity-{self._digest[:12]}.json"

    def _path(self, name: str) -> Path:
        return self._folder / self._path_name(name)

    def _path_name(self, name: str) -> str:
        return f"{name}-{self._digest[:12]}.safetensors"

    def _remove(self) -> None:
        """Remove what is a journal's; whatever else lies in a folder of that name stays."""
        if self._folder.is_symlink() or not self._folder.is_dir():
            return
        with suppress(OSError):
            for path in self._folder.iterdir():
                if _OURS.fullmatch(path.name):
                    path.unlink()
            self._folder.rmdir()


def _sha256(latents: Tensor) -> str:
    """Of type, shape and values."""
    head = f"{latents.dtype} {list(latents.shape)}".encode()
    return hashlib.sha256(head + latents.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
