"""A story as a small YAML or JSON file: prompts, and when each begins or how long it lasts.

    - {frame: 0, prompt: make it winter}               - {duration: 3, prompt: a red ball rolls to the left}
    - {frame: 120, prompt: make it spring}             - {frames: 24, prompt: the ball turns blue}
    - {time: "0:12.5", prompt: make it summer}         - {duration: "0:02.5", prompt: it starts to snow}

`frame` and `frames` count frames; `time` and `duration` are seconds, or [H:]MM:SS. For an edit `frame` counts from the
first edited frame and `time` is one of the video; `strength` is one number, or that of the first and of the last frame
before the next entry (strength: [0, 1]). Where an entry says nothing of its beginning it follows the one before; where
it says nothing of its length it lasts until the next one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.options import seconds_of

Schedule = tuple[tuple[Any, ...], ...]
"""Entries: where each begins (a frame: int; seconds: float), the instruction and, where it says so, the strength."""
Scenes = tuple[tuple[str, int | float], ...]

_LARGEST_BYTES = 1 << 20
_DEEPEST = 16
_FORM = (
    "write a list of entries such as {frame: 120, prompt: make it snow}, {time: 0:05, prompt: make it snow} or "
    "{duration: 3, prompt: it starts to snow}"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt: where it begins and how long it lasts, frames (int) or seconds (float), None where it is not said.

    `strength`: of an edit, one value, or none where it is not said.
    """

    prompt: str
    start: int | float | None
    duration: int | float | None
    strength: tuple[Any, ...] = ()


def read_prompts(path: Path) -> Schedule:
    """The schedule in a file.

    Raises:
        InputError: the file cannot be read, or holds something else; the sentence names the entry.
    """
    starts: list[int | float] = []
    entries = read_story(path)
    for number, entry in enumerate(entries, start=1):
        starts.append(_start(path, number, entry, entries[number - 2] if starts else None, starts))
    return tuple((start, entry.prompt, *entry.strength) for start, entry in zip(starts, entries, strict=True))


def _start(path: Path, number: int, entry: Entry, before: Entry | None, starts: list[int | float]) -> int | float:
    """Where an entry begins: as it says, else where the one before ends."""
    if entry.start is not None:
        return entry.start
    if before is None:
        return 0 if isinstance(entry.duration, int) else 0.0
    if before.duration is not None and type(before.duration) is type(starts[-1]):
        return starts[-1] + before.duration
    raise InputError(
        f"{path}: nobody can say where entry {number}, {entry.prompt!r}, begins: count all in frames or all in seconds."
    )


def read_scenes(path: Path) -> Scenes:
    """The scenes in a file: each prompt and how long it lasts (frames: int; seconds: float).

    Raises:
        InputError: as `read_prompts`, or a scene has no length, or another one than the next scene's beginning says.
    """
    entries = read_story(path)
    scenes = []
    for number, entry in enumerate(entries, start=1):
        if entry.strength:
            raise InputError(f"{path}: entry {number}, {entry.prompt!r}, has a strength, which only edits have.")
        told = _until_next(entry, entries[number] if number < len(entries) else None, is_first=number == 1)
        length = told if entry.duration is None else entry.duration
        if length is None or length <= 0 or (type(told) is type(length) and told != length):
            raise InputError(
                f"{path}: nobody can say how long entry {number}, {entry.prompt!r}, lasts: give it a duration in "
                "seconds (duration: 3) or frames (frames: 24)."
            )
        scenes.append((entry.prompt, length))
    return tuple(scenes)


def _until_next(entry: Entry, after: Entry | None, *, is_first: bool) -> int | float | None:
    """How long a scene lasts by its beginning and the next one's; None where they do not say."""
    start = 0 if is_first and entry.start is None else entry.start
    if after is None or after.start is None or start is None:
        return None
    return after.start - start if start == 0 or type(start) is type(after.start) else None


def read_story(path: Path) -> tuple[Entry, ...]:
    """The entries of a file as they stand there.

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


def _entry(path: Path, number: int, entry: Any) -> Entry:
    """One entry; everything in it is text, so that 1:30 is no number of YAML's."""
    if isinstance(entry, dict) and isinstance(entry.get("prompt"), str) and len(entry) >= 2:
        try:
            start, duration = _amount(entry, "frame", "time"), _amount(entry, "frames", "duration")
            strength = (_numbers(entry["strength"]),) if "strength" in entry else ()
            told = (start is not None) + (duration is not None)
            if told and len(entry) == 1 + told + len(strength):
                return Entry(entry["prompt"], start, duration, strength)
        except (TypeError, ValueError, AttributeError):
            pass
    raise InputError(f"{path}: entry {number}, {entry!r}, has no frame, time or duration with a prompt; {_FORM}.")


def _numbers(text: Any) -> Any:
    """A number or a list of them, from text."""
    return [float(each) for each in text] if isinstance(text, list) else float(text)


def _amount(entry: dict[str, Any], frames: str, seconds: str) -> int | float | None:
    """What an entry says in frames (int) or in seconds (float); None: nothing. Raises what the text is worth."""
    if frames in entry:
        return int(entry[frames])
    return seconds_of(entry[seconds]) if seconds in entry else None
