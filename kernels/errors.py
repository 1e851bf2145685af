"""The exceptions of the whole project: every error a user can cause or meet derives from `FairyError`.

They live in the lowest folder so that all four may raise them. Each message is one sentence that names the
value and the remedy; the command line prints it and ends with `exit_code`.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any


class FairyError(Exception):
    """Base of every error that fairy raises on purpose."""

    exit_code = 1


class InputError(FairyError, ValueError):
    """What the user gave cannot be used: a value, a file, a combination of options (exit code 2).

        InputError("is not possible", name="crf", value=99, remedy="it must be a whole number from 0 to 51")
        InputError("clip.mp4 does not exist; check the path.")

    Attributes:
        problem: what is wrong: a predicate of the option, or a whole sentence where no option has a `name`.
        name: of the parameter at fault, as the library spells it; None where it is no parameter.
        value: what was given for it; `...` where the name says all.
        remedy: what to do, a clause.
    """

    exit_code = 2

    def __init__(self, problem: str, *, name: str | None = None, value: Any = ..., remedy: str | None = None) -> None:
        self.problem, self.name, self.value, self.remedy = problem, name, value, remedy
        super().__init__(self.sentence())

    def sentence(self, spell: Callable[[str], str] | None = None) -> str:
        """One sentence; `spell`: how a face writes the option, such as "--crf" for "crf"."""
        if self.name is None:
            return self.problem
        subject = self.name if spell is None else spell(self.name)
        if self.value is not ...:
            subject += f"{' = ' if spell is None else ' '}{_shown(self.value)}"
        return f"{subject} {self.problem}{f'; {self.remedy}' if self.remedy else ''}."


def _shown(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if isinstance(value, Fraction | Path):
        return str(value)
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


class MachineError(FairyError, RuntimeError):
    """The machine failed: no disk space, a helper process died, a wait passed its deadline (exit code 1)."""


class NumericalError(FairyError, ArithmeticError):
    """Values became NaN or infinite and higher precision did not help (exit code 1)."""


class Cancelled(FairyError):
    """The caller asked to stop; no video was written (exit code 130, as a shell reports an interrupt)."""

    exit_code = 130
