"""A schedule of instructions as a small YAML or JSON file.

    - {frame: 0, prompt: make it winter}
    - {frame: 120, prompt: make it spring}
    - {time: "0:12.5", prompt: make it summer, strength: [0, 1]}

`frame` counts from the first edited frame; `time` is one of the video, in seconds or as [H:]MM:SS. `strength` is one
number, or that of the first and of the last frame before the next entry.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.options import seconds_of

Schedule = tuple[tuple[Any, ...], ...]
"""Entries: where each begins (a frame: int; seconds: float), the instruction and, where it says so, the strength."""

_LARGEST_BYTES = 1 << 20
_DEEPEST = 16
_FORM = "write a list of entries such as {frame: 120, prompt: make it snow} or {time: 0:05, prompt: make it snow}"


def read_prompts(path: Path) -> Schedule:
    """The schedule in a file.

    Raises:
        InputError: the file cannot be read, or holds something else; the sentence names the entry.
    """
    import yaml

    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    if len(text) > _LARGEST_BYTES:
        raise InputError(f"{path} is larger than 1 MiB, too large for a schedule of instructions; check the path.")
    try:
        loader = yaml.CBaseLoader if hasattr(yaml, "CBaseLoader") else yaml.BaseLoader
        if _depth(yaml.scan(text, loader)) > _DEEPEST:  # building that many lists within lists ends the process
            raise InputError(f"{path} holds lists within lists, deeper than {_DEEPEST}; {_FORM}.")
        entries = yaml.load(text, loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = str(error).splitlines()[0]
        raise InputError(f"{path} is neither YAML nor JSON ({where}); {_FORM}.") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} holds no list; {_FORM}.")
    return tuple(_entry(path, number, entry) for number, entry in enumerate(entries, start=1))


def _depth(tokens: Iterable[Any]) -> int:
    """How deep a YAML text's lists and mappings lie within each other; not read further than `_DEEPEST`."""
    depth = 0
    for token in tokens:
        depth += token.id in ("[", "{", "<block sequence start>", "<block mapping start>")
        depth -= token.id in ("]", "}", "<block end>")
        if depth > _DEEPEST:
            break
    return depth


def first_instruction(prompt: str | None, schedule: Schedule | None) -> str:
    """The instruction that the video begins with: the one given, else the schedule's, where that begins at 0.

    Raises:
        InputError: there is none.
    """
    if prompt is not None:
        return prompt
    found: list[str] = [text for start, text, *_ in schedule or () if start == 0]
    if found:
        return found[0]
    remedy = "add an entry for frame 0, or give one" if schedule else 'say what to do, for example "make it snow"'
    raise InputError(f"The video begins without an instruction; {remedy}.")


def _entry(path: Path, number: int, entry: Any) -> tuple[Any, ...]:
    """One entry; everything in it is text, so that 1:30 is no number of YAML's."""
    if isinstance(entry, dict) and isinstance(entry.get("prompt"), str):
        rest = {name: value for name, value in entry.items() if name != "prompt"}
        try:
            strength = (_numbers(rest.pop("strength")),) if "strength" in rest else ()
            if list(rest) == ["frame"]:
                return int(rest["frame"]), entry["prompt"], *strength
            if list(rest) == ["time"]:
                return seconds_of(rest["time"]), entry["prompt"], *strength
        except (TypeError, ValueError, AttributeError):
            pass
    raise InputError(f"{path}: entry {number}, {entry!r}, has no frame or time with a prompt; {_FORM}.")


def _numbers(text: Any) -> Any:
    """A number or a list of them, from text."""
    return [float(each) for each in text] if isinstance(text, list) else float(text)
