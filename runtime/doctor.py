"""What works on this machine, and the exact command that mends what does not."""

import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_DISTRIBUTION = "fairy-runtime"
_CODECS = ("libx264", "libvpx-vp9", "aac")
_MODEL_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer_config.json",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the thing.
        works: whether it can be used.
        found: what was found, in a few words.
        remedy: the command that mends it, to be typed as it stands; empty where there is none.
        remark: what else there is to say.
        required: whether editing is impossible without it.
    """

    what: str
    works: bool
    found: str
    remedy: str = ""
    remark: str = ""
    required: bool = True

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything an edit needs or could use."""
    looks: tuple[Callable[[], list[Finding]], ...] = (
        _python,
        _packages,
        _codecs,
        _gpu,
        _optional,
        _model,
        _room,
    )
    return [finding for look in looks for finding in look()]


_BACKENDS = (  # module, what pip is told, remark
    ("onnxruntime", "onnxruntime onnx onnxscript", "or onnxruntime-gpu, never both"),
    ("tensorrt", "tensorrt-cu13 onnx onnxscript", "or tensorrt-cu12, for drivers of CUDA 12: docs/tensorrt.md"),
)


def _python() -> list[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    return [Finding("Python", not old, found, remark="install Python 3.11 or later" if old else "")]


def _packages() -> list[Finding]:
    findings = []
    for name, floor in floors().items():
        found = _installed(name)
        works = found is not None and _numbers(found) >= _numbers(floor)
        remedy = "" if works else f"{_pip()} install {shlex.quote(f'{name}>={floor}')}"
        findings.append(Finding(name, works, found or "not installed", remedy, required=name != "triton"))
    return findings


def floors() -> dict[str, str]:
    """The oldest version of every package that fairy needs, by name, as its own metadata says."""
    wanted = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)(.*)", text) for text in requires(_DISTRIBUTION) or [])
    return {match[1]: match[2] for match in wanted if match and "extra ==" not in match[3]}


def _codecs() -> list[Finding]:
    try:
        import av

        missing = [name for name in _CODECS if name not in av.codecs_available]
    except ImportError:
        missing = list(_CODECS)
    remedy = f"{_pip()} install --force-reinstall --only-binary=av {shlex.quote('av>=17')}" if missing else ""
    found = f"missing: {', '.join(missing)}" if missing else ", ".join(_CODECS)
    return [Finding("video encoders", not missing, found, remedy)]


def _gpu() -> list[Finding]:
    try:
        import torch
    except ImportError:
        return []
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return [Finding("CUDA GPU", True, f"{torch.cuda.device_count()} × {', '.join(sorted(names))}", required=False)]
    if torch.version.cuda is None:
        remark = "only worth it with an NVIDIA GPU; installs PyTorch's build with CUDA"
        remedy = f"{_pip()} install --force-reinstall torch=={torch.__version__.partition('+')[0]}"
        return [Finding("CUDA GPU", False, "this PyTorch is built for the CPU only", remedy, remark, required=False)]
    remark = "where there is an NVIDIA GPU, install its driver until this command lists it"
    return [Finding("CUDA GPU", False, "none found", "nvidia-smi", remark, required=False)]


def _optional() -> list[Finding]:
    findings = []
    for module, packages, remark in _BACKENDS:
        missing = [name for name in (module, "onnx", "onnxscript") if find_spec(name) is None]
        there = module not in missing
        found = (_installed(module) or _installed(f"{module}-gpu") or "installed") if there else "not installed"
        if there and missing:
            found += f", but {' and '.join(missing)} not, which `fairy build` needs"
        remedy = f"{_pip()} install {packages}" if missing else ""
        findings.append(Finding(module, not missing, found, remedy, remark if missing else "", required=False))
    return [*findings, _compiler()]


def _compiler() -> Finding:
    found = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    remark = "" if found else "the backend compiled needs g++ or clang++ on the CPU; install one"
    return Finding("C++ compiler", found is not None, found or "none found", remark=remark, required=False)


def _model() -> list[Finding]:
    from fairy.runtime.models import embedded_model

    folder = embedded_model()
    missing = [name for name in _MODEL_FILES if not (folder / name).is_file() or not (folder / name).stat().st_size]
    if not missing:
        return [Finding("embedded model", True, "whole")]
    checkout = next((parent for parent in folder.parents if (parent / ".git").exists()), None)
    if checkout is not None:
        remedy = f"git -C {shlex.quote(str(checkout))} checkout -- {folder.relative_to(checkout)}"
    else:
        remedy = f"{_pip()} install --force-reinstall --no-deps {_DISTRIBUTION}=={_installed(_DISTRIBUTION)}"
    return [Finding("embedded model", False, f"{missing[0]} is missing in {folder}", remedy)]


def _room() -> list[Finding]:
    folder = Path(tempfile.gettempdir())
    free_gib = shutil.disk_usage(folder).free / 2**30
    enough = free_gib > 1
    remark = "" if enough else f"free some space in {folder}, or set TMPDIR to a larger disk"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("temporary space", enough, f"{free_gib:.1f} GiB free in {folder}", remark=remark, required=False),
        Finding("CPU cores", True, str(cores), required=False),
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:3])


def _pip() -> str:
    return f"{shlex.quote(sys.executable)} -m pip"
