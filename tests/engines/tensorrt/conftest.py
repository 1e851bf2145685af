"""What the TensorRT tests share: their helper modules, NVIDIA's wheels where they are at hand, the fake library."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
WHEELS = Path(os.environ.get("FAIRY_TEST_WHEELS", ROOT / "build" / "wheels"))
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def _load(name: str) -> ModuleType:
    """A helper module of this folder, importable by its name alone."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


for _name in ("scripted", "scenarios"):
    _load(_name)


def unpacked(pattern: str) -> Path:
    """The folder of a wheel that `make wheels` fetched; skips where there is none for this Python."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-"
    wheels = [path for path in sorted(WHEELS.glob(pattern)) if tag in path.name or "-py3-none-" in path.name]
    if not wheels:
        pytest.skip(f"{pattern} is not in {WHEELS.name}/: `make wheels` fetches it where the package index is reached")
    folder = WHEELS / "unpacked" / wheels[-1].stem
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, zipfile.ZipFile(wheels[-1]) as archive:
            archive.extractall(Path(temporary) / folder.name)
            os.replace(Path(temporary) / folder.name, folder)
    return folder


@pytest.fixture(scope="session", params=["tensorrt_cu12_bindings-10.16", "tensorrt_cu13_bindings-11.4"])
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `import tensorrt_bindings` finds NVIDIA's real bindings over the fake library."""
    if shutil.which("cc") is None or platform.machine() != "x86_64":
        pytest.skip("the fake library wants a C compiler on x86-64")
    folder = unpacked(f"{request.param}*.whl")
    major = re.search(r"-(\d+)\.", request.param)[1]
    libraries = tmp_path_factory.mktemp("libraries")
    library, *others = [libraries / f"lib{name}.so.{major}" for name in LIBRARIES]
    command = ["cc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}", "-o", library, HERE / "fake_library.c"]
    subprocess.run(command, check=True)
    for other in others:  # one file under three names is loaded once, so what is scripted holds for all
        other.symlink_to(library)
    return _environment(libraries, folder) | {"FAKE_LIBRARY": str(library)}


@pytest.fixture(scope="session")
def tensorrt_rtx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `import tensorrt_rtx_bindings` finds NVIDIA's real TensorRT for RTX."""
    folder = unpacked("tensorrt_rtx_cu13_bindings-*.whl")
    provider = unpacked("onnxruntime_ep_nv_tensorrt_rtx_cu13-*.whl")
    libraries = tmp_path_factory.mktemp("libraries")
    for file in provider.glob("onnxruntime_ep_nv_tensorrt_rtx/libtensorrt_*rtx.so.*"):
        os.symlink(file, libraries / re.sub(r"(\.so\.\d+).*", r"\1", file.name))
    return _environment(libraries, folder)


def _environment(libraries: Path, folder: Path) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def run_script() -> Callable[..., str]:
    """Runs a script of this folder in a process of its own and gives its output, which is shown where it fails."""

    def run(name: str, environment: dict[str, str], *arguments: object, limit_s: float = 300) -> str:
        done = subprocess.run(
            [sys.executable, HERE / name, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert done.returncode == 0, f"{name} {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
