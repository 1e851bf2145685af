"""The fast tests on other Pythons, with the lowest and the highest versions that pyproject.toml allows.

    python tests/environments.py                       every Python of PYTHONS that is found here, both ways
    python tests/environments.py 3.12 --only lowest

Each environment is made anew in build/environments, which takes gigabytes for torch; `make nightly` runs them all.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13")
WAYS = ("lowest", "highest")
ROOT = Path(__file__).parents[1]
_FLOOR = re.compile(r"^([A-Za-z0-9-]+)>=([0-9.]+)")
_LIMIT_S = 3600
_OURS = re.compile("FAILED|ERROR|passed|failed|error")


def wanted() -> list[str]:
    """Everything that the project and its tests need, as pyproject.toml says it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"]]


def floors() -> list[str]:
    """The same at the lowest allowed versions."""
    found = [_FLOOR.match(line) for line in wanted()]
    missing = [line for line, match in zip(wanted(), found, strict=True) if match is None]
    if missing:
        raise SystemExit(f"{missing[0]!r} in pyproject.toml has no lowest version; write {missing[0]}>=…")
    return sorted({f"{match[1]}=={match[2]}" for match in found if match})


def find_python(version: str) -> Path | None:
    """An interpreter of that version: on the path, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [Path(p) for p in (shutil.which(f"python{version}"),) if p]
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    for python in candidates:
        asked = [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False)
        if said.stdout.strip() == version:
            return python
    return None


def make(python: Path, folder: Path, way: str) -> Path:
    """A fresh environment with this project in it; its interpreter."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = folder / "bin" / "python"
    packages = folder / "packages.txt"
    packages.write_text("\n".join(["cmake", "ninja", *(floors() if way == "lowest" else wanted())]) + "\n")
    pip = [inside, "-m", "pip", "install", "--quiet", "--quiet"]
    subprocess.run([*pip, "--requirement", packages], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT], check=True)
    return inside


def run_tests(inside: Path) -> bool:
    """Whether the fast tests pass there."""
    words = [
        inside.parent / "pytest",
        "-n",
        "auto",
        "--dist",
        "loadfile",
        "-m",
        "not slow and not nightly",
        ROOT / "tests",
        "--ignore",
        ROOT / "tests" / "test_packaging.py",  # which is about the locked versions
    ]
    words += ["--max-worker-restart", "0"]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"the tests did not end within {_LIMIT_S} s", flush=True)
        return False
    print("\n".join(line for line in done.stdout.splitlines() if _OURS.match(line) or " passed" in line), flush=True)
    return done.returncode == 0


def main() -> int:
    """Make and test every environment; the exit code says whether all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", default=PYTHONS, metavar="VERSION")
    parser.add_argument("--only", choices=WAYS)
    options = parser.parse_args()
    good = True
    for version in options.pythons:
        python = find_python(version)
        if python is None:
            print(f"Python {version}: none is here, nothing was tested", flush=True)
            continue
        for way in WAYS if options.only is None else (options.only,):
            print(f"Python {version}, {way} versions:", flush=True)
            try:
                good &= run_tests(make(python, ROOT / "build" / "environments" / f"{version}-{way}", way))
            except subprocess.CalledProcessError as error:
                print(f"the environment could not be made: {error}", flush=True)
                good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
