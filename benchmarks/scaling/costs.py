"""What the stages of an edit cost: read from a file, measured here, or computed from operations at an assumed rate."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fairy.benchmarks.timing import machine, time_ms
from fairy.engines.backends import make_backend
from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import InputError
from fairy.runtime.denoise.networks import Networks
from fairy.runtime.denoise.segment_edit import SegmentEdit
from fairy.runtime.device import resolve_device, resolve_dtype
from fairy.runtime.files import write_atomically
from fairy.runtime.models import embedded_model
from fairy.runtime.plan.batches import default_micro_batch
from fairy.runtime.plan.memory import weights_bytes
from fairy.runtime.plan.params import EditParams
from fairy.runtime.plan.plan import plan_edit
from fairy.runtime.plan.stage_costs import StageCosts
from fairy.runtime.plan.tasks import Task, anchor_task, frame_task
from fairy.runtime.record.progress import Monitor
from fairy.runtime.record.run import Run

ANCHORS = 3
_STEPS = 1  # of the measured batches
_RUNS = 3

# Stable Diffusion 1.5's InstructPix2Pix at 512×384 with 3 anchors and 3 guidance branches in 16 bit: 10⁹ operations
# as torch.utils.flop_counter counts them, and bytes as its configuration says.
_SD15_GFLOP = {
    "text": 2 * 13.3,
    "encode": 831.1,
    "decode": 1879.4,
    "anchors_step": 9 * 718.12,
    "frames_step": 9 * 784.1,
}
_SD15_WEIGHTS_BYTES = 2 * (859_532_484 + 83_653_863 + 123_060_480)
_SD15_BANK_STEP_BYTES = 311_869_440


def read_costs(path: Path) -> StageCosts:
    """The stage costs in a JSON file that `save_costs` wrote. Raises InputError where there are none."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file of stage costs.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON; name a file of stage costs.") from error
    return StageCosts.from_json(content.get("stage_costs") if isinstance(content, dict) else None)


def save_costs(costs: StageCosts, path: Path, device: torch.device) -> None:
    """Write stage costs, with the machine they were measured on, as JSON."""
    content = {"machine": machine(device), "stage_costs": costs.to_json()}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def computed_costs(tflop_per_s: float) -> StageCosts:
    """Costs of Stable Diffusion 1.5 on a GPU that does `tflop_per_s` · 10¹² operations a second in every stage.

    Nothing of them is measured; the controller is taken to be idle and working memory is left out.
    """
    if not 0 < tflop_per_s < 1e6:
        raise InputError(
            "is not a rate", name="tflops", value=tflop_per_s, remedy="give 10¹² operations a second, such as 400"
        )
    return StageCosts(
        name=f"SD 1.5, 512×384, at {tflop_per_s:g} TFLOP/s",
        measured=False,
        precision="float16",
        long_side=512,
        anchors=ANCHORS,
        micro_batch=default_micro_batch(ANCHORS),
        handout_ms=0.0,
        weights_bytes=_SD15_WEIGHTS_BYTES,
        bank_step_bytes=_SD15_BANK_STEP_BYTES,
        unet_frame_bytes=0,
        vae_bytes=0,
        **{f"{stage}_ms": gflop / tflop_per_s for stage, gflop in _SD15_GFLOP.items()},
    )


def measure_costs(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    long_side: int | None = None,
) -> tuple[StageCosts, torch.device]:
    """Time every stage as an edit runs it: medians of three after a warm-up, one CPU thread.

    Args:
        model: a folder or hub id; None = the embedded model.
        device, dtype, backend: as for `Editor.from_pretrained`.
        long_side: of 4:3 pictures; None = the model's recommendation.

    Returns:
        The costs, and the device they were measured on.
    """
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    checkpoint = load_checkpoint(embedded_model() if model is None else model, dtype=precision, device=where)
    made = make_backend(backend, checkpoint, where, precision)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            bench = _Bench.prepared(Networks(checkpoint, made, where), long_side, precision)
            return bench.costs(made.name, "the embedded model" if model is None else str(model)), where
    finally:
        torch.set_num_threads(before)
        made.close()


@dataclass(frozen=True, slots=True)
class _Bench:
    """One small job of `ANCHORS` anchors and a micro-batch, with what its stages take."""

    networks: Networks
    run: Run
    pictures: list[np.ndarray[Any, np.dtype[np.uint8]]]
    edit: SegmentEdit
    image_latents: Tensor
    noise: Tensor
    latents: Tensor
    bank_bytes: int

    @classmethod
    def prepared(cls, networks: Networks, long_side: int | None, precision: torch.dtype) -> "_Bench":
        side = long_side or int(networks.checkpoint.recommended.get("long_side", 512))
        batch = default_micro_batch(ANCHORS)
        params = EditParams("make it snow", num_inference_steps=_STEPS, anchors=ANCHORS, long_side=side)
        shape = (ANCHORS + batch, max(side * 3 // 4, 1), side, 3)
        frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        monitor = Monitor()
        plan = plan_edit(networks.checkpoint, frames, params, monitor, latents=None, precision=precision)
        run = Run.of(plan, monitor)
        pictures, edit = list(frames), SegmentEdit(networks, run, run.plan.segments[0])
        image_latents = networks.encode(run, pictures[: ANCHORS + batch])
        noise = edit.noise.initial((0,)).expand(len(image_latents), -1, -1, -1)
        made = cls(networks, run, pictures, edit, image_latents, noise, noise, 0)
        return replace(made, latents=made._anchors(), bank_bytes=run.tally.bank_bytes)

    def costs(self, backend: str, model: str) -> StageCosts:
        """Time and weigh every stage."""
        run, networks = self.run, self.networks
        width, height = run.plan.result_size[1], run.plan.result_size[0]
        precision = str(run.pace.precision).removeprefix("torch.")
        found = machine(networks.device)
        unet_bytes = self._working_bytes(self._frames) / run.plan.micro_batch
        return StageCosts(
            name=f"{model}, {width}×{height}, {backend} {precision} on {found.get('gpu', found['cpu'])}",
            measured=True,
            precision=precision,
            long_side=max(width, height),
            anchors=ANCHORS,
            micro_batch=run.plan.micro_batch,
            text_ms=self._ms(lambda: networks.encode_text(run, run.plan.params.prompt)),
            encode_ms=self._ms(self._encode),
            decode_ms=self._ms(self._decode),
            anchors_step_ms=self._ms(self._anchors) / _STEPS,
            frames_step_ms=self._ms(self._frames) / _STEPS,
            handout_ms=measure_handout_ms(run.plan.micro_batch * width * height * 3),
            weights_bytes=weights_bytes(networks.checkpoint),
            bank_step_bytes=self.bank_bytes // _STEPS,
            unet_frame_bytes=round(unet_bytes),
            vae_bytes=max(self._working_bytes(self._encode), self._working_bytes(self._decode)),
        )

    def _encode(self) -> object:
        return self.networks.encode(self.run, self.pictures[:1])

    def _decode(self) -> object:
        return self.networks.decode(self.run, self.latents[:1])

    def _anchors(self) -> Tensor:
        return self._computed(anchor_task(self.run.plan.segments[0], _STEPS))

    def _frames(self) -> object:
        return self._computed(frame_task(self.run.plan.segments[0].parts[0].frames, _STEPS, anchors=True))

    def _computed(self, task: Task) -> Tensor:
        frames, count = task.frames, len(task.frames)
        self.edit.begin_with(frames, self.noise[:count], self.image_latents[:count])
        self.edit.compute(task)
        return self.edit.latents(frames)

    def _ms(self, stage: Callable[[], object]) -> float:
        return time_ms(stage, device=self.networks.device, budget_ms=0, min_runs=_RUNS, graph=False).median_ms

    def _working_bytes(self, stage: Callable[[], object]) -> int:
        return peak_bytes(stage, self.networks.device)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors made by a call take at once, beyond what there was before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with _silent_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    peak = held = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what native code prints, such as the profiler's start and stop, off the terminal."""
    with open(os.devnull, "wb") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def measure_handout_ms(num_bytes: int) -> float:
    """The controller's time to send that many bytes of pictures to another thread's socket and take as many back."""
    mine, other = socket.socketpair()
    payload = bytes(num_bytes)

    def echo() -> None:
        with other:
            while received := _receive(other, num_bytes):
                other.sendall(received)

    worker = threading.Thread(target=echo, daemon=True)
    worker.start()
    with mine:

        def hand_out() -> None:
            mine.sendall(payload)
            _receive(mine, num_bytes)

        found = time_ms(hand_out, device=torch.device("cpu"), budget_ms=100)
    worker.join(10)
    return found.median_ms


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    """That many bytes, or none where the other end was closed."""
    chunks = []
    for chunk in iter(partial(connection.recv, 1 << 20), b""):
        chunks.append(chunk)
        num_bytes -= len(chunk)
        if num_bytes <= 0:
            return b"".join(chunks)
    return b""
