"""The library for C programs, built the way its users do, for one kernel; and what its generator writes."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairy.kernels.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("binaries.bin", "rows.inc", "generated.h")
pytest.importorskip("triton", reason="there is no Triton to compile kernels with")


def _run(*command: object, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _configure(source: Path, build: Path, *options: str) -> list[object]:
    return ["cmake", "-S", source, "-B", build, f"-DPython3_EXECUTABLE={sys.executable}", *options]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder with one kernel: sm_80, head dimension 40, fp16."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("there is no cmake or no C++ compiler")
    folder = tmp_path_factory.mktemp("native") / "build folder"  # a space, as users have them
    one = ("-DFAIRY_TARGETS=80", "-DFAIRY_HEAD_DIMS=40", "-DFAIRY_DTYPES=fp16")
    _run(*_configure(ROOT, folder, *one))
    _run("cmake", "--build", folder)
    return folder


@pytest.mark.slow
def test_its_own_tests_pass(build: Path) -> None:
    assert re.search(r"100% tests passed.* out of 8", _run("ctest", "--test-dir", build, "--output-on-failure"))


@pytest.mark.slow
def test_nothing_is_compiled_twice(build: Path) -> None:
    generated = build / "kernels" / "native" / "generated"
    before = [(generated / name).stat().st_mtime_ns for name in GENERATED]
    assert "Compiling kernels" not in _run("cmake", "--build", build)
    assert [(generated / name).stat().st_mtime_ns for name in GENERATED] == before
    depends = (generated / "binaries.d").read_text().replace("\\ ", " ")
    for name in ("ahead_of_time.py", "anchor_attention_kernel.py", "embed_binaries.py"):
        assert str(ROOT / "kernels" / name) in depends


@pytest.mark.slow
def test_the_machine_code_is_the_compilers_and_names_no_folder_of_this_machine(build: Path) -> None:
    generated = build / "kernels" / "native" / "generated"
    code = (generated / "binaries.bin").read_bytes()
    library = next((build / "kernels" / "native").glob("libfairy_kernels.so.*.*")).read_bytes()
    assert code[:4] == b"\x7fELF"
    assert code in library
    for content in (code, library):
        assert str(ROOT).encode() not in content
        assert str(build).encode() not in content


@pytest.mark.slow
def test_only_the_public_functions_are_exported_and_nothing_of_nvidias_is_linked(build: Path) -> None:
    library = build / "kernels" / "native" / "libfairy_kernels.so"
    exported = {line.split()[-1] for line in _run("nm", "-D", "--defined-only", library).splitlines()}
    header = (ROOT / "kernels" / "native" / "include" / "fairy" / "kernels.h").read_text()
    assert exported == set(re.findall(r"^FAIRY_API .*?(\w+)\(", header, re.MULTILINE))
    needed = re.findall(r"NEEDED.*\[(.+)\]", _run("readelf", "-d", library))
    assert not [name for name in needed if "cuda" in name or "nv" in name]


@pytest.mark.slow
def test_an_installed_library_is_found_by_another_project(build: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    _run("cmake", "--install", build, "--prefix", prefix)
    example = tmp_path / "example"
    _run(*_configure(ROOT / "examples" / "native", example, f"-DCMAKE_PREFIX_PATH={prefix}"))
    _run("cmake", "--build", example)
    said = _run(example / "attention", CUDA_VISIBLE_DEVICES="")
    assert "1 kernels" in said
    assert "anchor_attention_strided_d40_fp16_sm80" in said


@pytest.mark.slow
def test_a_python_without_triton_is_refused_with_the_remedy(build: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys._base_executable}" -I -S "$@"\n')
    python.chmod(0o755)
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DPython3_EXECUTABLE={python}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs PyTorch and Triton" in done.stderr
    assert "-DFAIRY_NATIVE=OFF" in done.stderr


@pytest.mark.slow
def test_the_generator_uses_its_own_checkout_and_writes_the_same_bytes(build: Path, tmp_path: Path) -> None:
    """In a copy of the sources elsewhere, with a cold cache: the same three files."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "kernels", copy / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    choice = ("--targets", "80", "--head-dims", "40", "--dtypes", "fp16")
    depfile = tmp_path / "depends.d"
    command = [sys.executable, "-P", copy / "kernels" / "embed_binaries.py", "--out", tmp_path, "--depfile", depfile]
    _run(*command, *choice)
    for name in GENERATED:
        made = (tmp_path / name).read_bytes()
        built = (build / "kernels" / "native" / "generated" / name).read_bytes()
        assert hashlib.sha256(made).hexdigest() == hashlib.sha256(built).hexdigest(), name
    assert str(copy / "kernels" / "ahead_of_time.py") in depfile.read_text()
    assert str(ROOT / "kernels" / "ahead_of_time.py") not in depfile.read_text()


def test_parameters_become_the_launchers_fields_in_order() -> None:
    from fairy.kernels.ahead_of_time import Variant, compile_variant
    from fairy.kernels.embed_binaries import only_exact, parameters

    binary = compile_variant(Variant(40, torch.bfloat16, 90))
    fields = re.findall(r"X\((.+), (.+)\)", parameters(binary).split("\n", 1)[1])
    assert len(fields) == len(binary.params)
    assert fields[:3] == [("const void*", "q"), ("const void*", "out"), ("const void*", "k[0]")]
    assert fields[-1] == ("float", "scale")
    assert ("int32_t", "kt[4]") in fields
    assert only_exact(binary.ptx)
    assert not only_exact(".version 8.7\n.target sm_86\n")
    with pytest.raises(RuntimeError, match="names no target"):
        only_exact("")


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (((75,), (40,), ("fp16",)), "target = 75 is not offered"),
        (((80,), (48,), ("fp16",)), "head_dim = 48 is not offered"),
        (((80,), (40,), ("fp8",)), "dtype = 'fp8' is not offered"),
        (((), (40,), ("fp16",)), "No kernel is asked for"),
    ],
)
def test_a_choice_that_is_not_offered_is_named(choice: tuple, says: str) -> None:
    from fairy.kernels.embed_binaries import BinaryChoice, compile_all

    with pytest.raises(InputError, match=says):
        compile_all(BinaryChoice(*choice))
