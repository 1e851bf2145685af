"""Masks of what is named in words, by the user's own CLIPSeg (Lüddecke and Ecker, arXiv 2112.10003).

Every frame is looked at by itself, before the edit begins, and what was found is kept in a folder of black and white
pictures until the edit is over: from there on it is a mask like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fairy.engines.store.key import canonical_digest, file_digest
from fairy.export.checkpoint import model_folder, read_json
from fairy.export.loading import load_network, one_sentence
from fairy.kernels.errors import InputError
from fairy.runtime.device import cpu_threads
from fairy.runtime.files import user_path
from fairy.runtime.inputs.frames import Frames, Source
from fairy.runtime.record.progress import Monitor
from fairy.runtime.temporary import WorkingFolder

_FILES = ["*.json", "*.txt", "model.safetensors"]
_HALF = 0.0  # of a logit: from here on a pixel is more likely of the thing than not


@dataclass(frozen=True, slots=True)
class Segmenter:
    """A CLIPSeg, in float32 on a device; with one CPU thread, so that its masks are the same whoever computes the edit.

    Attributes:
        folder: where it was read from.
    """

    folder: Path
    model: Any
    processor: Any

    @property
    def digest(self) -> str:
        """Of its weights and configuration."""
        files = (*sorted(self.folder.glob("*.safetensors")), *sorted(self.folder.glob("*.json")))
        return canonical_digest([[file.name, file_digest(file)] for file in files])

    @torch.inference_mode()
    def __call__(self, frame: Frames, text: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Where a frame uint8 [H, W, 3] shows what the text names: [H, W]."""
        with cpu_threads(1):
            given: Mapping[str, Any] = self.processor(
                text=[text], images=[frame], padding=True, truncation=True, return_tensors="pt"
            )
            logits = self.model(**{name: t.to(self.model.device) for name, t in given.items()}).logits
            whole = F.interpolate(
                logits.float().reshape(1, 1, *logits.shape[-2:]),
                frame.shape[:2],
                mode="bilinear",
                align_corners=False,
            )
            found: np.ndarray[Any, np.dtype[np.bool_]] = (whole[0, 0] >= _HALF).cpu().numpy()
        return found


def load_segmenter(name: str | Path, device: torch.device, hub: dict[str, Any]) -> Segmenter:
    """A CLIPSeg from a folder or the hub.

    Raises:
        InputError: it is not there, of another kind, or not whole.
    """
    folder = model_folder("segmenter", user_path(name) if user_path(name).is_dir() else name, _FILES, hub)
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "clipseg":
        problem, remedy = f"is of the kind {kind}, not clipseg", "choose a CLIPSeg, such as CIDAS/clipseg-rd64-refined"
        raise InputError(problem, name="segmenter", value=str(name), remedy=remedy)
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    model = load_network(CLIPSegForImageSegmentation, folder, torch.float32, what="segmenter")
    with one_sentence(folder, "segmenter"):
        processor = CLIPSegProcessor.from_pretrained(folder, local_files_only=True)
    return Segmenter(folder, model.to(device), processor)


def masks_of(text: str, source: Source, segmenter: Segmenter, monitor: Monitor) -> WorkingFolder:
    """A folder with the mask of every frame; the caller closes it."""
    from PIL import Image

    made = WorkingFolder()
    try:
        folder = pictures_in(made)
        folder.mkdir()
        for number, frame in enumerate(source.read()):
            monitor.check()
            with monitor.timed("masks"):
                Image.fromarray(segmenter(frame, text)).save(folder / f"{number}.png")
            monitor.tell("masks", number + 1, source.num_frames)
    except BaseException:
        made.close()
        raise
    return made


def pictures_in(made: WorkingFolder) -> Path:
    """Where in it the masks are."""
    return made.path / "masks"
