"""The exceptions of the whole project: every error a user can cause or meet derives from `FairyError`.

They live in the lowest folder so that all four may raise them. Each message is one sentence that names the
value and the remedy; the command line prints it as it stands and ends with `exit_code`.
"""


class FairyError(Exception):
    """Base of every error that fairy raises on purpose."""

    exit_code = 1


class InputError(FairyError, ValueError):
    """What the user gave cannot be used: a value, a file, a combination of options (exit code 2)."""

    exit_code = 2


class MachineError(FairyError, RuntimeError):
    """The machine failed: no disk space, a helper process died, a wait passed its deadline (exit code 1)."""


class NumericalError(FairyError, ArithmeticError):
    """Values became NaN or infinite and higher precision did not help (exit code 1)."""


class Cancelled(FairyError):
    """The caller asked to stop; no video was written (exit code 130, as a shell reports an interrupt)."""

    exit_code = 130
