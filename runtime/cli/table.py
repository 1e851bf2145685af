"""The command line's part of the option table: options of `runtime/options.py` as those of a command."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any

import typer

from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.fleet.fleet_options import FleetOptions
from fairy.runtime.generation.params import (
    ClipRequest,
    GenerateParams,
    GeneratorSetup,
    InterpolateParams,
    StoryParams,
    UpscaleParams,
)
from fairy.runtime.options import Flag, Names, Number, Option, Text, Whole, options_of
from fairy.runtime.plan.file_request import FileRequest
from fairy.runtime.plan.params import EditParams
from fairy.runtime.service.options import ServiceOptions

TABLES = (
    EditParams,
    EditorSetup,
    FileRequest,
    FleetOptions,
    ServiceOptions,
    GenerateParams,
    StoryParams,
    InterpolateParams,
    UpscaleParams,
    GeneratorSetup,
    ClipRequest,
)
_SELF_EXPLAINING = (Flag, Names, Number, Text, Whole)  # kinds whose help need not say what may be given
_FLAGS = {name: option.flag for table in TABLES for name, option in options_of(table).items() if option.flag}


def with_options(*tables: type, skip: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option of these tables in place of its `**given`, which gets those that were typed, parsed.

    Args:
        skip: options that the command does not offer.
    """
    options = {n: option for table in tables for n, option in options_of(table).items() if n not in skip}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            typed = {name: values.pop(name) for name in options if name in values}
            given = {n: _parsed(options[n], n, value) for n, value in typed.items() if value not in (None, [])}
            command(**values, **given)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [parameter(name, option) for name, option in options.items()]
        run.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *made)])  # type: ignore[attr-defined]  # what Typer reads
        run.__annotations__ = {p.name: p.annotation for p in (*own, *made)}
        return run

    return decorate


def parameter(name: str, option: Option) -> inspect.Parameter:
    """An option as a parameter that Typer understands; None = it was not typed."""
    kind: Any = bool if isinstance(option.kind, Flag) else list[str] if isinstance(option.kind, Names) else str
    info = typer.Option(spelled(name), help=help_of(option), metavar=option.kind.metavar or None, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )


def help_of(option: Option) -> str:
    """One line of help: what it is for, what it takes, and what happens without it."""
    takes = "" if isinstance(option.kind, _SELF_EXPLAINING) else f": {option.kind.takes()}"
    usual = f" [{option.ends_in}]" if option.ends_in else ""
    return f"{option.sentence}{takes}{usual}."


def spelled(name: str) -> str:
    """A parameter of the library as the command line writes it: num_inference_steps is --steps."""
    return f"--{_FLAGS.get(name) or name.replace('_', '-')}"


def chosen(table: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given values that are a table's."""
    return {name: given[name] for name in options_of(table) if name in given}


def _parsed(option: Option, name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(option.kind.parse(name, text) for text in value)
    return value if isinstance(value, bool) else option.kind.parse(name, value)
