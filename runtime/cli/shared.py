"""What several commands have in common beside the table of options."""

import os
import warnings
from typing import Annotated

import typer

from fairy.runtime.cli.table import help_of
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.options import options_of

_SETUP = options_of(EditorSetup)

Device = Annotated[str, typer.Option(help=help_of(_SETUP["device"]), show_default=False)]
Dtype = Annotated[str, typer.Option(help=help_of(_SETUP["dtype"]), show_default=False)]
BackendName = Annotated[str, typer.Option("--backend", help=help_of(_SETUP["backend"]), show_default=False)]
Threads = Annotated[int, typer.Option(help=help_of(_SETUP["threads"]), show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, and nothing that other libraries say.")]

_SILENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "PYTHONWARNINGS": "ignore",
}


def silence_libraries() -> None:
    """Keep the libraries' own bars and warnings off stderr, in this process and in those it starts."""
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
