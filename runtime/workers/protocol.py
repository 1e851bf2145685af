"""What the messages between the controller and its workers hold.

A message is a JSON line and raw bytes (`video/wire.py`); nothing is pickled. The controller says

    load     model, device, precision: once, first
    job      a segment of a job: the job's parameters, sizes and initial noise
    bank     the anchors' bank comes from another worker; where to meet
    anchors  compute phase A of these pictures, and send the bank to the others where a meeting place is named
    bank_off a worker is lost that the bank was broadcast to: let go of the group, at once
    part     compute these frames
    decode   these frames' latents are there already: decode them
    stop     the job is over, done or not; forget it

and a worker answers `ready`, `step`, `waiting`, `bank`, `anchors`, `part`, `undone` (it had no bank) or `error`.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairy.export.model import EditModel
from fairy.kernels.errors import Cancelled, FairyError, InputError, MachineError, NumericalError
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.plan.params import EditParams
from fairy.runtime.plan.plan import Plan, plan_source
from fairy.runtime.record.progress import Monitor
from fairy.runtime.record.run import Run
from fairy.runtime.video.wire import Message

LIMIT_BYTES = 1 << 34
"""No payload is larger."""

_ERRORS: dict[str, type[FairyError]] = {
    "input": InputError,
    "machine": MachineError,
    "numerical": NumericalError,
    "cancelled": Cancelled,
}


@dataclass(frozen=True, slots=True)
class FramesElsewhere:
    """A `Source` as a worker knows it: its frames are read by the controller and come with the tasks."""

    num_frames: int
    size: tuple[int, int]
    clock: None = None
    video: None = None
    first: int = 0
    notes: tuple[str, ...] = ()
    max_pixels: int = 0
    has_alpha: bool = False

    def read(self, indices: object = None) -> Generator[Frames, None, None]:
        """Nothing can be read here."""
        raise FairyError("The frames of this source are read by the controller.")

    def read_alpha(self) -> Generator[Frames, None, None]:
        """Nothing can be read here."""
        return self.read()

    def describe(self) -> dict[str, Any]:
        """The report is the controller's."""
        return {}


def describe_segment(plan: Plan, segment: int, anchor_pictures: Sequence[Frames] = ()) -> tuple[Message, bytes]:
    """Everything a worker needs to plan the same edit and to begin one of its segments.

    `anchor_pictures`: the anchors' source frames, which go along where the instruction is encoded with them.
    """
    params = plan.params.to_json() | {"anchors": list(plan.anchors), "micro_batch": plan.micro_batch}
    initial = b"" if plan.initial is None else plan.initial.cpu().contiguous().numpy().tobytes()
    noise = None if plan.initial is None else list(plan.initial.shape)
    facts = {"params": params, "num_frames": plan.source.num_frames, "size": list(plan.source.size), "initial": noise}
    seen = plan.text_of(plan.segments[segment]) in ("shot", "anchor")
    pictures = pack_frames(anchor_pictures) if seen else b""
    facts |= {"segment": segment, "latent_shape": list(plan.latent_shape), "initial_bytes": len(initial)}
    return facts, initial + pictures


def rebuild_run(
    checkpoint: EditModel, message: Message, payload: bytearray, monitor: Monitor, precision: torch.dtype
) -> Run:
    """The edit whose segment `describe_segment` described."""
    height, width = message["size"]
    source = FramesElsewhere(int(message["num_frames"]), (int(height), int(width)))
    params = EditParams(**message["params"])
    plan = plan_source(checkpoint, source, params, latents=None, precision=precision)
    if message["initial"] is not None:
        noise = _initial_noise(payload[: message["initial_bytes"]], message["initial"])
        plan = replace(plan, initial=noise)
    return Run.of(plan, monitor)


def seen_pictures(message: Message, payload: bytearray, plan: Plan) -> list[Frames]:
    """The anchors' source frames that came along with `describe_segment`'s message."""
    return unpack_frames(payload[message["initial_bytes"] :], plan.source.size, plan.channels)


def _initial_noise(payload: bytearray, shape: Sequence[int]) -> Tensor:
    return torch.frombuffer(payload, dtype=torch.float32).reshape(list(shape))


def pack_frames(frames: Sequence[Frames]) -> bytes:
    """Frames uint8 [H, W, 3 or 4] of one size as bytes."""
    return b"".join(np.ascontiguousarray(frame).data for frame in frames)


def unpack_frames(payload: bytearray, size: tuple[int, int], channels: int = 3) -> list[Frames]:
    """The frames of `pack_frames`, whose (height, width) is known, and whether a mask is their fourth channel."""
    return list(np.frombuffer(payload, np.uint8).reshape(-1, *size, channels))


def pack_latents(latents: Tensor) -> bytes:
    """Latents [frames, c, h, w] as float32 bytes."""
    return latents.detach().float().cpu().contiguous().numpy().tobytes()


def pack_edited(frames: Sequence[Frames], latents: Tensor) -> bytes:
    """A finished micro-batch: its frames, then the latents they were decoded from."""
    return pack_frames(frames) + pack_latents(latents)


def unpack_latents(payload: bytearray, count: int, latent_shape: tuple[int, int, int]) -> Tensor:
    """The latents of `pack_latents`."""
    return torch.frombuffer(payload, dtype=torch.float32).reshape(count, *latent_shape)


def pack_finished(latents: Tensor, pictures: Sequence[Frames]) -> bytes:
    """Latents that an interrupted edit left, then the source frames they were made from."""
    return pack_latents(latents) + pack_frames(pictures)


def unpack_finished(
    payload: bytearray, count: int, size: tuple[int, int], latent_shape: tuple[int, int, int], channels: int = 3
) -> tuple[Tensor, list[Frames]]:
    """The latents and frames of `pack_finished`."""
    end = len(payload) - count * size[0] * size[1] * channels
    return unpack_latents(payload[:end], count, latent_shape), unpack_frames(payload[end:], size, channels)


def unpack_edited(
    payload: bytearray, count: int, size: tuple[int, int], latent_shape: tuple[int, int, int]
) -> tuple[list[Frames], Tensor]:
    """The frames and latents of `pack_edited`."""
    pixels = count * size[0] * size[1] * 3
    return unpack_frames(payload[:pixels], size), unpack_latents(payload[pixels:], count, latent_shape)


def error_message(error: FairyError) -> Message:
    """A message that says what went wrong."""
    kind = next((name for name, cls in _ERRORS.items() if isinstance(error, cls)), "machine")
    return {"is": "error", "error": str(error), "kind": kind}


def error_of(message: Message) -> FairyError:
    """The exception that a message speaks of."""
    return _ERRORS.get(str(message.get("kind")), MachineError)(str(message["error"]))
