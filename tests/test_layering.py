"""Imports run one way, kernels ← export ← engines ← runtime, and importing has no side effect."""

import ast
import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("kernels", "export", "engines", "runtime")
BELOW = {folder: set(ORDER[: i + 1]) for i, folder in enumerate(ORDER)}


def _imports(path: Path) -> set[str]:
    """Every module that a file names in an import statement, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.level == 1, f"{path} imports across folders by a relative path"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _strings(path: Path) -> set[str]:
    """Module names that a file holds as strings, for imports made when a name is first used."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_only_those_below_it(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for name in _imports(path) | {s for s in _strings(path) if s.startswith("fairy.") and " " not in s}:
            parts = name.split(".")
            if parts[0] == "fairy" and len(parts) > 1 and parts[1] in ORDER:
                assert parts[1] in BELOW[folder], f"{path.relative_to(ROOT)} imports {name}"
            assert parts[0] not in {"tests", "benchmarks", "training", "examples"}, f"{path} imports {name}"
            assert parts[0] not in ORDER, f"{path} imports the bare name {name}"


def test_the_benchmarks_are_loaded_by_their_command_alone_and_only_when_it_runs() -> None:
    for path in itertools.chain.from_iterable((ROOT / folder).rglob("*.py") for folder in ORDER):
        assert not any(name.startswith("fairy.benchmarks") for name in _imports(path)), path
        named = any(s.startswith("fairy.benchmarks") for s in _strings(path))
        assert named == (path.relative_to(ROOT).as_posix() == "runtime/cli/bench.py"), path


def test_the_check_would_notice_an_upward_import(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from fairy.runtime import Editor\n    return Editor\n")
    assert "fairy.runtime" in _imports(bad)


def test_no_import_cycle_between_files() -> None:
    paths = {}
    for folder in ORDER:
        for path in (ROOT / folder).rglob("*.py"):
            module = "fairy." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            paths[module.removesuffix(".__init__")] = path
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module in done or module not in paths:
            return
        for name in _imported_files(paths[module], set(paths)):
            visit(name, (*trail, module))
        done.add(module)

    for module in paths:
        visit(module, ())


def _imported_files(path: Path, modules: set[str]) -> set[str]:
    """Modules that importing a file runs first; `from package import module` means that module."""
    nodes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ImportFrom) and n.module]
    named = {(f"{n.module}.{alias.name}", str(n.module)) for n in nodes for alias in n.names}
    return {full if full in modules else module for full, module in named}


def test_no_bare_names_are_importable() -> None:
    for name in ("runtime", "engines", "export"):
        assert importlib.util.find_spec(name) is None, f"{name} is importable without fairy in front"
    kernels = importlib.util.find_spec("kernels")
    assert kernels is None or str(ROOT) not in str(kernels.origin)


def _modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import fairy.runtime", {"torch", "av", "diffusers", "transformers"}),
        ("import fairy.runtime.video", {"torch", "diffusers", "transformers"}),
        ("import fairy.runtime.cli.main", {"torch", "diffusers", "transformers", "fairy.benchmarks"}),
        ("import fairy.kernels.anchor_attention", {"fairy.runtime", "fairy.engines", "fairy.export", "diffusers"}),
        ("import fairy.runtime.editor", {"tensorrt", "onnxruntime", "onnx"}),
    ],
)
def test_imports_load_no_more_than_they_need(statement: str, absent: set[str]) -> None:
    assert not absent & _modules_after(statement)


def test_public_names_exist() -> None:
    import fairy.runtime

    for name in fairy.runtime.__all__:
        assert getattr(fairy.runtime, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fairy.runtime.nonsense
