"""What `fairy bench` does, behind the options that the command line parses."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fairy.benchmarks.clip import Request, heading, run_clip, table
from fairy.benchmarks.page import write_page
from fairy.benchmarks.records import write_records
from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path


def run(options: Mapping[str, Any], out: Path, tell: Callable[[str], object]) -> Iterator[str]:
    """Measure, then write `record.json` and `page.html` into the folder `out`; gives the lines to print.

    Raises:
        InputError: an option is impossible, or the folder cannot be made. MachineError: the GPU slowed its clocks.
    """
    request, folder = Request(**options), user_path(out)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made ({error.strerror}); name another one.") from error
    found = run_clip(request, tell)
    yield f"{heading(found)}\n{table(found)}"
    write_records(folder / "record.json", found.records)
    yield f"{folder / 'record.json'}: for fairy bench gate"
    note = write_page(found, folder / "page.html")
    yield f"{folder / 'page.html'}: open it in a browser"
    if note is not None:
        yield note
