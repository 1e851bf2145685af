"""What works on this machine, and the exact command that mends what does not."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_FLOORS = {"torch": "2.11", "diffusers": "0.42.1", "transformers": "5.0", "av": "17", "numpy": "2.0"}
_CODECS = ("libx264", "libvpx-vp9", "aac")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the thing.
        works: whether it can be used.
        found: what was found, in a few words.
        remedy: the command or step that mends it; empty where nothing is to be done.
        required: whether editing is impossible without it.
    """

    what: str
    works: bool
    found: str
    remedy: str = ""
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
        _triton,
        _optional,
        _model,
        _room,
    )
    return [finding for look in looks for finding in look()]


def _python() -> list[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    return [Finding("Python", not old, found, "install Python 3.11 or later" if old else "")]


def _packages() -> list[Finding]:
    findings = []
    for name, floor in _FLOORS.items():
        found = _installed(name)
        works = found is not None and _numbers(found) >= _numbers(floor)
        remedy = "" if works else f'{_pip()} install "{name}>={floor}"'
        findings.append(Finding(name, works, found or "not installed", remedy))
    return findings


def _codecs() -> list[Finding]:
    try:
        import av

        missing = [name for name in _CODECS if name not in av.codecs_available]
    except ImportError:
        missing = list(_CODECS)
    remedy = f'{_pip()} install --force-reinstall --only-binary=av "av>=17"' if missing else ""
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
        remedy = f"with an NVIDIA GPU: {_pip()} install --force-reinstall torch (a build with CUDA)"
        return [Finding("CUDA GPU", False, "this PyTorch is built for the CPU only", remedy, required=False)]
    remedy = "with an NVIDIA GPU: install its driver (nvidia-smi must list the GPU)"
    return [Finding("CUDA GPU", False, "none found", remedy, required=False)]


def _triton() -> list[Finding]:
    found = _installed("triton")
    remedy = "" if found else f'{_pip()} install "triton>=3.6" (used on CUDA only)'
    return [Finding("triton", found is not None, found or "not installed", remedy, required=False)]


def _optional() -> list[Finding]:
    findings = []
    for module, extra in (
        ("onnxruntime", f'{_pip()} install "fairy-runtime[onnxruntime]" (or [onnxruntime-gpu])'),
        ("tensorrt", f"{_pip()} install tensorrt (from NVIDIA's package index)"),
    ):
        there = find_spec(module) is not None
        found = (_installed(module) or _installed(f"{module}-gpu") or "installed") if there else "not installed"
        findings.append(Finding(module, there, found, "" if there else extra, required=False))
    return findings


def _model() -> list[Finding]:
    from fairy.runtime.models import embedded_model

    folder = embedded_model()
    whole = all((folder / part).exists() for part in ("model_index.json", "unet", "vae", "text_encoder", "tokenizer"))
    remedy = "" if whole else f"{_pip()} install --force-reinstall --no-deps fairy-runtime"
    return [Finding("embedded model", whole, "whole" if whole else f"incomplete in {folder}", remedy)]


def _room() -> list[Finding]:
    folder = Path(tempfile.gettempdir())
    free_gib = shutil.disk_usage(folder).free / 2**30
    enough = free_gib > 1
    remedy = "" if enough else f"free some space in {folder}, or set TMPDIR to a larger disk"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("temporary space", enough, f"{free_gib:.1f} GiB free in {folder}", remedy, required=False),
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
    return f"{Path(sys.executable).name} -m pip"
