"""`fairy models`: which models are at hand on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer


def models(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Folders that hold models too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models at hand, with what they are and their licences; nothing is loaded or fetched."""
    from fairy.runtime.models.local import local_models

    found = list(local_models(folders or ()))
    if as_json:
        typer.echo(json.dumps([model.to_json() for model in found], indent=2))
        return
    for model in found:
        typer.echo(f"{model.name}\n    {model.family}\n    licence: {model.licence}\n    {model.path}")
