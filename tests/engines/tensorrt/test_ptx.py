"""The kernel's PTX without the parameters that TensorRT does not pass: text, and what ptxas makes of it."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton

from fairy.engines.tensorrt.plugin import compiled_kernel, plugin_ptx
from fairy.engines.tensorrt.ptx import strip_parameters, without_line_info
from fairy.kernels.ahead_of_time import TARGETS
from fairy.kernels.errors import MachineError
from tests.engines.tensorrt.ptx_kinds import parameter_kinds

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SMALL = """.version 8.7
.target sm_89
.visible .entry twice(
\t.param .u64 .ptr .global .align 1 twice_param_1,
\t.param .u32 twice_param_2,
\t.param .u64 .ptr .global .align 1 twice_param_10,
\t.param .u64 .ptr .global .align 1 twice_param_11
)
{
\t.loc\t1 7 0 // kernel.py:7:0
\tld.param.b64 %rd1, [twice_param_1];
\tld.param.b32 %r1, [twice_param_2];
\tret;
}
\t.file\t1 "/home/somebody/kernel.py"
\t.section\t.debug_abbrev
\t{
.b8 1
\t}
"""


def test_trailing_parameters_go() -> None:
    stripped = strip_parameters(SMALL, 2)
    assert parameter_kinds(SMALL) == ["u64", "u32", "u64", "u64"]
    assert parameter_kinds(stripped) == ["u64", "u32"]
    assert "ld.param.b64 %rd1, [twice_param_1];" in stripped
    assert "twice_param_1," in stripped  # not taken for the start of twice_param_10
    assert "twice_param_10" not in stripped
    assert "twice_param_2\n)" in stripped


@pytest.mark.parametrize(
    ("keep", "change", "text"),
    [
        (1, ("", ""), "uses its parameter twice_param_2"),
        (5, ("", ""), "takes 4 parameters instead of 5 or more"),
        (2, (".visible .entry", ".func"), "has 0 entries"),
        (2, ("ret;", "ld.param.b64 %rd2, [twice_param_11];\n\tret;"), "uses its parameter twice_param_11"),
    ],
)
def test_what_must_not_go_is_refused(keep: int, change: tuple[str, str], text: str) -> None:
    with pytest.raises(MachineError, match=text):
        strip_parameters(SMALL.replace(*change) if change[0] else SMALL, keep)


def test_paths_go() -> None:
    bare = without_line_info(SMALL)
    assert "somebody" not in bare
    assert ".loc" not in bare
    assert ".debug" not in bare
    assert bare.count("\n") == SMALL.count("\n") - 6


CASES = [("own_and_shared", 40), ("shared", 160)]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_ptxas_takes_it(target: int, tmp_path: Path) -> None:
    for entry, head_dim in CASES:
        kernel = compiled_kernel(entry, head_dim, torch.float16, target)
        code = plugin_ptx(kernel)
        pointers = ["u64"] * (5 if entry == "own_and_shared" else 3)
        numbers = ["u32"] * (5 if entry == "own_and_shared" else 4)
        assert parameter_kinds(code) == [*pointers, *numbers, "u64"]
        assert re.search(r"^\.version 8\.7$", code, re.MULTILINE)
        assert "/" not in "".join(re.findall(r'"[^"]*"', code))
        path = tmp_path / f"{entry}.ptx"
        path.write_text(code)
        said = [_assemble(tool, code, path) for tool in sorted(TOOLS.glob("ptxas*"))]
        assert "" in said, f"{kernel.variant.name}: {said}"


def _assemble(tool: Path, code: str, path: Path) -> str:
    """What ptxas says against the code; nothing where it takes it."""
    arch = re.search(r"\.target (\w+)", code)[1]
    command = [tool, f"-arch={arch}", path, "-o", path.with_suffix(".cubin")]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()
