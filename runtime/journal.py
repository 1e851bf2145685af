"""What an interrupted edit leaves behind, so that it can go on: OUT.job, the latents of every finished micro-batch.

    OUT.job/identity.json       everything that decides the bytes of the result
    OUT.job/000012.safetensors  part 12: latents [frames, c, h, w] float32, with the identity's hash and their own

A file appears under its name only when it is whole. What is wrong, or belongs to another edit, is never used. The
folder is removed when the edited video is in its place.
"""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairy.kernels.errors import FairyError
from fairy.runtime.files import write_atomically

_SUFFIX = ".job"
_IDENTITY = "identity.json"
_OURS = re.compile(r"\d{6,}\.safetensors|\.(identity|\d+)\..*\.part")


def journal_folder(out: Path) -> Path:
    """Where the journal of the edit into `out` lies."""
    return out.with_name(out.name + _SUFFIX)


class Journal:
    """The finished micro-batches of one edit of a file. One thread at a time may use it."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Nothing is read or written yet."""
        self._folder = folder
        self._text = json.dumps(identity, indent=2, sort_keys=True, default=str)
        self._digest = hashlib.sha256(self._text.encode()).hexdigest()
        self._identity = json.loads(self._text)
        self._usable = False
        self._resumed: set[int] = set()
        self.notes: list[str] = []

    @property
    def resumed(self) -> int:
        """How many parts were not computed again."""
        return len(self._resumed)

    def begin(self, *, resume: bool) -> None:
        """Look at what an earlier edit left: keep it where it is this edit's and shall be used, else remove it."""
        if not self._folder.is_dir() or self._folder.is_symlink():
            if resume:
                self.notes.append(f"There is no {self._folder.name}; the edit began from the start.")
            return
        other = self._difference() if resume else "it was not asked for"
        if other is None:
            self._usable = True
            return
        if resume:
            self.notes.append(f"{self._folder.name} is of another edit ({other}); the edit began from the start.")
        self._remove()

    def load(self, part: int) -> Tensor | None:
        """The latents of a part, or None where there are none that can be trusted."""
        path = self._path(part)
        if not self._usable or not path.is_file() or path.is_symlink():
            return None
        try:
            with safe_open(path, "pt") as file:
                told, latents = file.metadata() or {}, file.get_tensor("latents")
            good = told == self._told(part, latents)
        except (SafetensorError, OSError, ValueError):
            good = False
        if not good:
            self.notes.append(f"{path.name} in {self._folder.name} is damaged; those frames were computed again.")
            return None
        self._resumed.add(part)
        found: Tensor = latents
        return found

    def save(self, part: int, latents: Tensor) -> None:
        """Keep the latents of a finished part; a disk that does not take them costs the journal, not the edit."""
        whole = latents.detach().float().cpu().contiguous()
        try:
            if not self._usable:
                if self._folder.is_symlink():
                    raise OSError(f"{self._folder.name} is a link")
                self._folder.mkdir(exist_ok=True)
                write_atomically(self._folder / _IDENTITY, self._text.encode())
                self._usable = True
            write_atomically(self._path(part), save({"latents": whole}, self._told(part, whole)))
        except (FairyError, OSError) as error:
            sentence = f"{self._folder.name} could not be written; an interrupted edit would begin earlier ({error})"
            if not any(note.startswith(sentence[:40]) for note in self.notes):
                self.notes.append(sentence)

    def finish(self) -> None:
        """The edited video is in its place: remove the journal."""
        self._remove()

    def _told(self, part: int, latents: Tensor) -> dict[str, str]:
        """What a part's file says of itself."""
        return {"identity": self._digest, "part": str(part), "sha256": _sha256(latents)}

    def _difference(self) -> str | None:
        """What about the journal's edit is not this one's; None where nothing is."""
        try:
            theirs = json.loads((self._folder / _IDENTITY).read_bytes()[: 1 << 24])
        except (OSError, ValueError):
            return "its identity cannot be read"
        if not isinstance(theirs, dict):
            return "its identity cannot be read"
        names = sorted({*theirs, *self._identity})
        return next((f"another {name}" for name in names if theirs.get(name) != self._identity.get(name)), None)

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:06d}.safetensors"

    def _remove(self) -> None:
        """Remove what is a journal's; whatever else lies in a folder of that name stays."""
        if self._folder.is_symlink() or not self._folder.is_dir():
            return
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.name == _IDENTITY or _OURS.fullmatch(path.name):
                    path.unlink()
            self._folder.rmdir()


def _sha256(latents: Tensor) -> str:
    """Of type, shape and values."""
    head = f"{latents.dtype} {list(latents.shape)}".encode()
    return hashlib.sha256(head + latents.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
