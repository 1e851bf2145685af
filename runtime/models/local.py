"""Which models are at hand on this machine: those that ship, those in the hub's cache, those in named folders."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.models import embedded_generator, embedded_model

_LICENCE = re.compile(r"^license:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)
_LARGEST_CARD_BYTES = 1 << 20
NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model at hand.

    Attributes:
        name: what `--model` (or `--lora`) takes; family: what it is, and what it is for.
        licence: what its card says.
    """

    name: str
    family: str
    licence: str
    path: str

    def to_json(self) -> dict[str, str]:
        """Its values by name."""
        return asdict(self)


def local_models(folders: Iterable[str | Path] = ()) -> Iterator[LocalModel]:
    """Models that ship, those in the hub's cache, then those in these folders and one folder deeper.

    Raises:
        InputError: one of the folders does not exist.
    """
    yield LocalModel("(none)", "editor: embedded, sees the picture", "Apache-2.0", str(embedded_model()))
    yield LocalModel(
        "(none)", "generator: embedded, for generate, interpolate, upscale", "Apache-2.0", str(embedded_generator())
    )
    for name, snapshot in _cached():
        yield LocalModel(name, family_of(snapshot), licence_of(snapshot), str(snapshot))
    for folder in map(user_path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; name one that holds models.")
        for path in sorted({folder, *folder.iterdir()}):
            if (path / "model_index.json").is_file():
                yield LocalModel(str(path), family_of(path), licence_of(path), str(path))
            elif path.suffix.lower() == ".safetensors" and path.is_file():
                yield LocalModel(str(path), family_of_file(path), licence_of(path.parent), str(path))


def family_of(folder: Path) -> str:
    """What a model in diffusers' format is, by its configuration alone."""
    from fairy.export.families import describe_edit_model

    try:
        found = describe_edit_model(folder)
    except (InputError, KeyError) as error:
        return f"cannot be used ({str(error).splitlines()[0] if isinstance(error, InputError) else f'no {error}'})"
    if found["sees"] is None:
        return f"no editor: {found['pipeline']}"
    return f"editor: {found['pipeline']}, sees the {found['sees']}"


def family_of_file(path: Path) -> str:
    """What a .safetensors file holds, by the names of its tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            sides = file.get_slice(_FIRST).get_shape() if _FIRST in names else None
    except (SafetensorError, OSError):
        return "cannot be used (no whole safetensors file)"
    if any(part in name for name in names for part in ("lora_down", "lora_A", "lora.down", "_lora")):
        return "LoRA (--lora)"
    if sides is None:
        return "weights of another kind"
    return "editor in one file (needs --config)" if sides[1] == 8 else f"no editor: one file, {sides[1]} channels in"


_FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def licence_of(folder: Path) -> str:
    """The licence that the card beside a model states, by the name that the hub has for it."""
    try:
        card = (folder / "README.md").open("rb").read(_LARGEST_CARD_BYTES).decode(errors="replace")
    except OSError:
        return NOT_STATED
    head = card.split("\n---", 1)[0] if card.startswith("---") else ""
    found = _LICENCE.search(head)
    return found[1] if found else NOT_STATED


def _cached() -> Iterator[tuple[str, Path]]:
    """Names and newest snapshots of pipelines in the hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories: Iterable[Any] = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda each: str(each.repo_id)):
        for revision in sorted(repository.revisions, key=lambda each: float(each.last_modified))[-1:]:
            if (revision.snapshot_path / "model_index.json").is_file():
                yield repository.repo_id, revision.snapshot_path
