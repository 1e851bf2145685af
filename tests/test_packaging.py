"""What is built and installed: one namespace, typed, complete; the lock agrees with what torch publishes."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "export", "engines", "runtime")
LINUX = {"platform_system": "Linux", "sys_platform": "linux", "python_version": "3.11", "extra": ""}


def _pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def _version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} is not an exact pin"
    return specifier.version


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, ROOT]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_namespace_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fairy"}
    assert "fairy/__init__.py" not in names
    for folder in FOLDERS:
        assert f"fairy/{folder}/__init__.py" in names
        assert f"fairy/{folder}/py.typed" in names
    benchmarks = {name for name in names if name.startswith("fairy/benchmarks/")}
    assert {"fairy/benchmarks/timing.py", "fairy/benchmarks/scaling/command.py"} <= benchmarks
    for name in benchmarks:  # what needs the checkout's folders stays there
        assert not re.search(rb"(from|import) (benchmarks|training|tests)\b", zipfile.ZipFile(wheel).read(name)), name
    assert "fairy/runtime/models/embedded/model_index.json" in names
    assert "fairy/runtime/models/generator/cascade.json" in names
    assert "fairy/runtime/models/generator/base/diffusion_pytorch_model.safetensors" in names
    page = [name for name in names if name.startswith("fairy/runtime/service/page/")]
    assert {"index.html", "style.css", "app.js"} <= {name.rpartition("/")[2] for name in page}
    for name in page:  # it loads nothing from elsewhere
        text = zipfile.ZipFile(wheel).read(name).replace(b"http://www.w3.org/", b"")
        assert b"http://" not in text, name
        assert b"https://" not in text, name
    assert "fairy/runtime/models/embedded/unet/diffusion_pytorch_model.safetensors" in names


@pytest.mark.slow
def test_an_ordinary_install_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name for path in site.iterdir() if path.is_dir()} - {"fairy", "bin"} == {
        next(path.name for path in site.glob("*.dist-info"))
    }
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "import fairy.runtime as r; print(r.__file__); print(r.embedded_model()); print(r.EditParams('x').seed)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(str(site))
    assert Path(lines[1]).is_relative_to(site)
    assert (Path(lines[1]) / "model_index.json").is_file()


def test_every_folder_is_typed() -> None:
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").is_file()


def test_floors_are_as_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {Requirement(text).name: str(Requirement(text).specifier) for text in project["dependencies"]}
    assert project["requires-python"] == ">=3.11"
    assert floors["torch"] == ">=2.11"
    assert floors["triton"] == ">=3.6"
    assert floors["diffusers"] == ">=0.42.1"
    assert floors["av"] == ">=18"


def test_no_gpu_package_and_no_onnxruntime_is_required() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert not required & {"onnxruntime", "onnxruntime-gpu", "tensorrt", "flash-attn"}
    extras = project["optional-dependencies"]
    with_cpu = {name for name, texts in extras.items() if any(Requirement(t).name == "onnxruntime" for t in texts)}
    with_gpu = {name for name, texts in extras.items() if any(Requirement(t).name == "onnxruntime-gpu" for t in texts)}
    assert with_gpu
    assert not with_cpu & with_gpu


def test_the_lock_has_exact_pins_and_no_hashes_or_addresses() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "--hash" not in text
    assert "://" not in text
    for pin in _pins().values():
        assert _version(pin)


def test_no_pin_contradicts_what_torch_publishes() -> None:
    """The metadata of the published Linux wheel, kept here because a CPU-only build names fewer requirements."""
    pins = _pins()
    path = ROOT / "tests" / "data" / f"torch-{_version(pins['torch'])}.metadata"
    texts = [line.removeprefix("Requires-Dist: ") for line in path.read_text().splitlines() if "Requires-Dist" in line]
    published = [Requirement(text) for text in texts]
    assert any(r.name == "triton" for r in published)
    for requirement in published:
        name = canonicalize_name(requirement.name)
        if requirement.marker is None or requirement.marker.evaluate(LINUX):
            if name in pins:
                assert requirement.specifier.contains(_version(pins[name])), f"{pins[name]} against {requirement}"
            else:
                assert requirement.name.startswith(("nvidia-", "cuda-")), f"{requirement} is not pinned"


def test_pins_agree_with_each_other_and_with_the_project() -> None:
    pins = _pins()
    texts = [(name, text) for name in pins for text in _requires(name)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts += [("fairy", text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    for owner, text in texts:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate(LINUX):
            continue
        assert name in pins, f"{owner} needs {requirement}, which the lock does not pin"
        assert requirement.specifier.contains(_version(pins[name]), prereleases=True), f"{owner}: {requirement}"


def test_this_environment_is_the_locked_one() -> None:
    for name, pin in _pins().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            assert name == "triton", f"{name} is not installed"  # a platform without Triton wheels
            continue
        assert found.split("+")[0] == _version(pin), f"{name} {found} is installed, the lock says {pin}"


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []
