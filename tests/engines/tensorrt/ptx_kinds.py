"""What parameters a kernel's PTX has."""

import re


def parameter_kinds(ptx: str) -> list[str]:
    """The PTX type of every parameter of the entry, in order, e.g. ["u64", "u32"]."""
    entry = re.search(r"\.visible \.entry [\w$]+\((?P<params>.*?)\n?\)", ptx, re.DOTALL)
    return re.findall(r"\.param \.(\w+)", entry["params"]) if entry else []
