"""The tables of the documentation that come from code: ``python -m fairy.runtime.cli.reference DOCS``.

A page holds them between two comments, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``; what stands between is
replaced, the rest of a page is people's.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from fairy.export.steps import STEPS
from fairy.kernels.errors import InputError
from fairy.runtime.cli.table import spelled
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
from fairy.runtime.options import Option, options_of
from fairy.runtime.plan.file_request import FileRequest
from fairy.runtime.plan.params import EditParams
from fairy.runtime.service.options import ServiceOptions


def tables() -> dict[str, str]:
    """Every table by name, as Markdown."""
    steps = ((f"`{s.name}`", s.why, "yes" if s.exact else "no", ", ".join(s.devices), s.gain) for s in STEPS)
    return {
        "EditParams": _options(options_of(EditParams)),
        "EditorSetup": _options(options_of(EditorSetup)),
        "FileRequest": _options(options_of(FileRequest)),
        "FleetOptions": _options(options_of(FleetOptions)),
        "ServiceOptions": _options(options_of(ServiceOptions)),
        "GenerateParams": _options(options_of(GenerateParams)),
        "StoryParams": _options(options_of(StoryParams)),
        "InterpolateParams": _options(options_of(InterpolateParams)),
        "UpscaleParams": _options(options_of(UpscaleParams)),
        "GeneratorSetup": _options(options_of(GeneratorSetup)),
        "ClipRequest": _options(options_of(ClipRequest)),
        "steps": _table(("step", "what it does", "exact", "runs on", "gain, computed or read"), steps),
    }


def filled(page: str, made: Mapping[str, str]) -> str:
    """A page with its tables as they are now. Raises InputError where a table has no end."""
    for name, table in made.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, found, rest = page.partition(begin)
        if found:
            _, closed, after = rest.partition(end)
            if not closed:
                raise InputError(f"The table {name} has no end; write {end} after it.")
            page = f"{before}{begin}{table}{end}{after}"
    return page


def _options(options: Mapping[str, Option]) -> str:
    return _table(("parameter", "option", "takes", "default", "what it is"), map(_row, options, options.values()))


def _row(name: str, option: Option) -> tuple[str, ...]:
    return f"`{name}`", f"`{spelled(name)}`", option.kind.takes(), option.ends_in or "–", option.sentence


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Rewrite the tables of all pages in a folder."""
    made = tables()
    for path in sorted(Path(sys.argv[1]).glob("*.md")):
        page = path.read_text(encoding="utf-8")
        path.write_text(filled(page, made), encoding="utf-8")


if __name__ == "__main__":
    main()
