"""`fairy serve`: the service and its page."""

from importlib.util import find_spec
from typing import Any

import typer

from fairy.kernels.errors import InputError
from fairy.runtime.cli.shared import silence_libraries
from fairy.runtime.cli.table import chosen, with_options
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.service.options import ServiceOptions

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_OF_FILES = ("controlnet", "depth_estimator", "ip_adapter", "segmenter")
"""What requests cannot use: it goes with files of this machine."""


@with_options(ServiceOptions, EditorSetup, skip=_OF_FILES)
def serve(context: typer.Context, **given: Any) -> None:
    """Serve edits over HTTP, and a page, until stopped."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"The service needs {missing[0]}, which is not installed; run: pip install 'fairy-runtime[serve]'"
        )
    silence_libraries()
    options = ServiceOptions(**chosen(ServiceOptions, given))
    setup = EditorSetup(**chosen(EditorSetup, given))
    from fairy.runtime.service.server import serve as run

    run(options, setup)
