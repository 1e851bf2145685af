"""Everything that decides the latents of an edit: what a journal is known by."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fairy.engines.store.key import canonical_digest, file_digest, weights_digest
from fairy.export.model import EditModel
from fairy.runtime.files import user_path
from fairy.runtime.plan.controls import ControlUse
from fairy.runtime.plan.plan import Plan
from fairy.runtime.record.edit_report import installed_versions


def identity_of(
    plan: Plan,
    *,
    checkpoint: EditModel,
    backend: str,
    engines: Sequence[str],
    device: torch.device,
    threads: int,
    segmenter: str | None = None,
) -> dict[str, Any]:
    """Everything that decides the latents of an edit, for a journal; a file is known by its size and time of change.

    Args:
        engines: digests of the built engines that might run, and the compiled path's steps.
        segmenter: digest of what made the mask.
    """
    video = plan.source.video
    path = video.path if video is not None else getattr(plan.source, "path", None)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    noise = None if plan.initial is None else hashlib.sha256(plan.initial.numpy().tobytes()).hexdigest()
    return {
        "source": {"files": stamps(path), "first": plan.source.first, "num_frames": plan.source.num_frames},
        "params": plan.params.to_json() | {"anchors": plan.anchors, "micro_batch": plan.micro_batch},
        "initial noise": noise,
        "looks": [stamps(user_path(look)) for look in plan.params.looks.values()],
        "segmenter": segmenter,
        "mask": stamps(None if plan.params.mask is None else user_path(plan.params.mask)),
        "model": stamps(checkpoint.folder) + stamps(checkpoint.single_file),
        "decoder": stamps(checkpoint.tiny_decoder_folder),
        "loras": [(stamps(lora.path), lora.scale) for lora in checkpoint.loras],
        "controls": [told_of(use, checkpoint) | {"files": _files(use)} for use in plan.controls],
        "style": [(told, stamps(user_path(told["sees"]))) for told in told_of_style(plan, checkpoint)],
        "depth estimator": stamps(checkpoint.depth_estimator_folder),
        "backend": {"name": backend, "engines": sorted(engines)},
        "precision": str(plan.precision),
        "device": {"type": device.type, "gpu": gpu, "threads": threads},
        "version": installed_versions(),
    }


def told_of(use: ControlUse, checkpoint: EditModel) -> dict[str, Any]:
    """A control of an edit, for its journal and its report: which, by the digest of its weights, and how it is used."""
    control = checkpoint.controls[use.number]
    digest = weights_digest(checkpoint, f"control_{use.number}")
    return {"name": control.name, "kind": use.kind, "digest": digest, "sees": use.sees, "scale": use.scale}


def told_of_style(plan: Plan, checkpoint: EditModel) -> list[dict[str, Any]]:
    """The same of a picture that is a prompt; empty without one."""
    adapter, style = checkpoint.ip_adapter, plan.style
    if adapter is None or style is None:
        return []
    digests = [file_digest(path) for path in (adapter.file, *sorted(adapter.folder.glob("*.safetensors")))]
    told = {"name": str(adapter.file), "kind": "ip_adapter", "digest": canonical_digest(digests)}
    return [told | {"sees": str(style[0]), "scale": style[1]}]


def _files(use: ControlUse) -> list[tuple[str, int, int]]:
    return [] if use.channel is None else stamps(user_path(use.sees))


def stamps(path: Path | None) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of a file, or of every file in a folder."""
    if path is None:
        return []
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
