"""Everything a user can choose, said once: each option at its field, with its type, range, default, help and users.

    crf: int = option(18, Whole(0, 51), "Quality of written videos, 0 (best) to 51")

The classes whose fields are made so are the table: `EditParams` (what an edit does), `EditorSetup` (what computes it),
`FileRequest` (what is written) and `FleetOptions` (who does many). Their checks, the command lines (`cli/table.py`) and
docs/options.md come from it, so a new option is one field.
"""

import dataclasses
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError

FITS = {
    "bank": "methods with a bank of chosen anchors",
    "parts": "methods whose frames do not wait for each other",
    "update": "methods with a guided update",
    "depth": "models that see depth",
    "text-picture": "models whose text is encoded with a picture",
    "in-context": "models that see the source beside the target",
    "transformer": "models that are transformers",
    "controls": "models of Stable Diffusion's class",
}
_DECIMAL = re.compile(r"-?\d+(\.\d*)?|-?\.\d+")
_LONGEST_NUMBER = 40  # characters


class Kind(ABC):
    """A type of value: what it may be, and how it is written as text.

    Attributes:
        metavar: what the help of a command line calls the value; "" where the option has none.
    """

    __slots__ = ()
    metavar: str

    @abstractmethod
    def takes(self) -> str:
        """The range or the choices, in words."""

    @abstractmethod
    def check(self, name: str, value: Any) -> Any:
        """The value as the library keeps it. Raises InputError."""

    def parse(self, name: str, text: str) -> Any:
        """The value that was typed. Raises InputError."""
        return self.check(name, text)


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """Any text."""

    metavar: str = "TEXT"

    def takes(self) -> str:
        """Text."""
        return "text"

    def check(self, name: str, value: Any) -> str:
        """The text, if it is Unicode."""
        if not isinstance(value, str):
            raise InputError(f"must be text, not {value!r}", name=name)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError("is not valid Unicode text", name=name, value=value, remedy="type it again") from error
        return value


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """On or off."""

    metavar: str = ""

    def takes(self) -> str:
        """On or off."""
        return "on or off"

    def check(self, name: str, value: Any) -> bool:
        """True or False, nothing that only looks like it."""
        if not isinstance(value, bool):
            raise InputError(f"must be True or False, not {value!r}", name=name)
        return value


@dataclass(frozen=True, slots=True)
class Whole(Kind):
    """A whole number from `low` to `high`."""

    low: int
    high: int
    metavar: str = "INTEGER"

    def takes(self) -> str:
        """The range."""
        return f"{self.low} to {self.high}"

    def check(self, name: str, value: Any) -> int:
        """A plain int; NumPy's are taken too."""
        if isinstance(value, Integral) and not isinstance(value, bool):
            number = operator.index(value)
            if self.low <= number <= self.high:
                return number
        raise InputError("is not possible", name=name, value=value, remedy=f"it must be a whole number {self._bounds}")

    def parse(self, name: str, text: str) -> int:
        """Digits."""
        try:
            number: int | str = int(text) if len(text) <= _LONGEST_NUMBER else text
        except ValueError:
            number = text
        return self.check(name, number)

    @property
    def _bounds(self) -> str:
        return f"from {self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A real number from `low` to `high`; `above`: it must be more than `low`."""

    low: float
    high: float
    above: bool = False
    metavar: str = "FLOAT"

    def takes(self) -> str:
        """The range."""
        if self.high == math.inf:
            return f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        return f"{self.low:g} to {self.high:g}"

    def check(self, name: str, value: Any) -> float:
        """A plain float; NumPy's are taken too."""
        if isinstance(value, Real) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:  # a whole number that no float holds
                number = math.inf
            above = number > self.low if self.above else number >= self.low
            if above and number <= self.high and math.isfinite(number):
                return number
        raise InputError("is not possible", name=name, value=value, remedy=f"it must be a number {self._bounds}")

    def parse(self, name: str, text: str) -> float:
        """A decimal number."""
        try:
            number: float | str = float(text)
        except ValueError:
            number = text
        return self.check(name, number)

    @property
    def _bounds(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return f"from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Time(Number):
    """Seconds of a video; as text also [H:]MM:SS."""

    metavar: str = "TIME"

    def takes(self) -> str:
        """How it is written."""
        return "seconds, or [H:]MM:SS"

    def parse(self, name: str, text: str) -> float:
        """Seconds, from seconds or [H:]MM:SS."""
        try:
            seconds = seconds_of(text)
        except ValueError as error:
            remedy = "give seconds (12.5) or [H:]MM:SS (1:02.5)"
            raise InputError("is not a time", name=name, value=text, remedy=remedy) from error
        return self.check(name, seconds)


@dataclass(frozen=True, slots=True)
class Rate(Kind):
    """Frames a second, as an exact fraction."""

    low: Fraction
    high: int
    metavar: str = "RATE"

    def takes(self) -> str:
        """The range."""
        return f"{float(self.low):g} to {self.high}, or a fraction such as 30000/1001"

    def check(self, name: str, value: Any) -> Fraction:
        """The exact fraction; a float of a usual rate is taken for what it means (29.97 = 30000/1001)."""
        from fairy.runtime.video.info import exact_rate

        if isinstance(value, bool) or not isinstance(value, Real) or not self.low <= value <= self.high:
            remedy = f"it must be a number from {float(self.low):g} to {self.high}"
            raise InputError("is not possible", name=name, value=value, remedy=remedy)
        return exact_rate(value if isinstance(value, Fraction) else float(value))

    def parse(self, name: str, text: str) -> Fraction:
        """A number or a fraction."""
        try:
            if len(text) > _LONGEST_NUMBER or "e" in text.lower():  # 1e99999999 would be computed
                raise ValueError(text)
            rate = Fraction(text)
        except (ValueError, ZeroDivisionError) as error:
            remedy = "give a number (25) or a fraction (30000/1001)"
            raise InputError("is not a rate", name=name, value=text, remedy=remedy) from error
        return self.check(name, rate)


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    choices: tuple[str, ...]
    metavar: str = "TEXT"

    def takes(self) -> str:
        """The words."""
        return ", ".join(self.choices)

    def check(self, name: str, value: Any) -> str:
        """One of the words."""
        if isinstance(value, str) and value in self.choices:
            return value
        raise InputError("is not known", name=name, value=value, remedy=f"choose one of {self.takes()}")


@dataclass(frozen=True, slots=True)
class Name(Kind):
    """A file, a folder, or the name of something: text or a path; `what` says it in words."""

    what: str
    metavar: str = "PATH"

    def takes(self) -> str:
        """What is named."""
        return self.what

    def check(self, name: str, value: Any) -> Any:
        """Text or a path."""
        if isinstance(value, str | Path):
            return value
        raise InputError("is not possible", name=name, value=value, remedy=f"give {self.what}")


@dataclass(frozen=True, slots=True)
class Names(Kind):
    """Several words; on a command line the option is repeated."""

    metavar: str = "TEXT"

    def takes(self) -> str:
        """Words."""
        return "names; may be repeated"

    def check(self, name: str, value: Any) -> tuple[str, ...]:
        """A tuple of words."""
        if isinstance(value, str):
            return (value,)
        words = tuple(value) if isinstance(value, Iterable) else (value,)
        if not all(isinstance(word, str) for word in words):
            raise InputError(f"must be a list of names, not {value!r}", name=name)
        return words

    def parse(self, name: str, text: str) -> str:
        """One of them."""
        return text


@dataclass(frozen=True, slots=True)
class Scaled(Kind):
    """A file, a folder or a name, and how much of it: NAME, NAME:0.5 or a pair."""

    what: str
    metavar: str = "PATH[:SCALE]"

    def takes(self) -> str:
        """How it is written."""
        return self.what

    def check(self, name: str, value: Any) -> tuple[str, float]:
        """A pair of path and scale."""
        path, scale = value if isinstance(value, list | tuple) and len(value) == 2 else (value, 1.0)
        if isinstance(value, str):
            before, _, tail = value.rpartition(":")
            path, scale = (before, float(tail)) if before and _DECIMAL.fullmatch(tail) else (value, 1.0)
        if not isinstance(path, str | Path) or not str(path):
            raise InputError("is not possible", name=name, value=value, remedy=f"give {self.takes()}")
        return str(path), Number(-100.0, 100.0).check(name, scale)


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that a user can choose.

    Attributes:
        kind: its type, range and choices.
        help: a sentence without its full stop.
        usual: what it is where nothing is said, if that is not simply its default.
        flag: what the command line calls it, without "--", where that is not its name.
        fits: who knows it, one of `FITS`; None = all.
        default: its default; None also stands for what `usual` says.
    """

    kind: Kind
    help: str
    usual: str = ""
    flag: str | None = None
    fits: str | None = None
    default: Any = None

    def check(self, name: str, value: Any) -> Any:
        """The value as the library keeps it; None where that is the default. Raises InputError."""
        return None if value is None and self.default is None else self.kind.check(name, value)

    @property
    def ends_in(self) -> str:
        """What happens where nothing is said."""
        if self.usual or self.default is None or self.default is False or self.default in ("", ()):
            return self.usual
        return str(self.default)

    @property
    def sentence(self) -> str:
        """What it is for, and for whom."""
        return f"{self.help}; for {FITS[self.fits]} alone" if self.fits else self.help


def option(
    default: Any, kind: Kind, help: str, *, usual: str = "", flag: str | None = None, fits: str | None = None
) -> Any:
    """The field of a dataclass that stands in the table; see `Option`."""
    entry = Option(kind, help, usual, flag, fits, default)
    return dataclasses.field(default=default, metadata={"option": entry})


def options_of(table: type) -> Mapping[str, Option]:
    """The options of a class by name, in the order of its fields."""
    return {f.name: f.metadata["option"] for f in dataclasses.fields(table) if "option" in f.metadata}


def check_options(table: Any) -> None:
    """Check every option of a (frozen) object and keep what was meant. Raises InputError for the first wrong one."""
    for name, entry in options_of(type(table)).items():
        object.__setattr__(table, name, entry.check(name, getattr(table, name)))


def seconds_of(text: str) -> float:
    """Seconds, from seconds or [H:]MM:SS. Raises ValueError."""
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds
