"""Which models are at hand on this machine: those that ship, those in the hub's cache, those in named folders.

Beside editors these are what guides them: LoRAs, ControlNets, adapters, segmenters, depth estimators.
"""

import json
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
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_HELPERS = {
    "ControlNetModel": "ControlNet (--controlnet)",
    "T2IAdapter": "T2I adapter (--controlnet)",
    "clipseg": "segmenter (--segmenter)",
    "dpt": "depth estimator (--depth-estimator)",
}
"""What a folder with one network is for, by the class or the type that its config.json names."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model at hand.

    Attributes:
        name: what `--model`, or the option that `family` names, takes; family: what it is, and what it is for.
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
            if _is_known(path):
                yield LocalModel(str(path), family_of(path), licence_of(path), str(path))
            elif path.suffix.lower() == ".safetensors" and path.is_file():
                yield LocalModel(str(path), family_of_file(path), licence_of(path.parent), str(path))


def family_of(folder: Path) -> str:
    """What a folder with a model is, by its configuration alone."""
    from fairy.export.families import describe_edit_model

    helper = _helper(folder)
    if helper is not None:
        return helper
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
    if {name.partition(".")[0] for name in names} == {"image_proj", "ip_adapter"}:
        return "IP-Adapter (--ip-adapter)"
    if sides is None:
        return "weights of another kind"
    return "editor in one file (needs --config)" if sides[1] == 8 else f"no editor: one file, {sides[1]} channels in"


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
    """Names and newest snapshots of what is known in the hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories: Iterable[Any] = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda each: str(each.repo_id)):
        for revision in sorted(repository.revisions, key=lambda each: float(each.last_modified))[-1:]:
            if _is_known(revision.snapshot_path):
                yield repository.repo_id, revision.snapshot_path


def _is_known(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or _helper(folder) is not None


def _helper(folder: Path) -> str | None:
    """What a folder with one network beside an editor is for; None = it is none of these."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    told = (config.get("_class_name"), config.get("model_type")) if isinstance(config, dict) else ()
    return next((_HELPERS[name] for name in told if name in _HELPERS), None)
