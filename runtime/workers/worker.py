"""One worker process: it loads the model once and computes whole tasks, as the in-process path does.

Started by the controller as `python -m fairy.runtime.workers.worker`; it ends when its stdin does. One thread reads
messages, so that "stop" and a lost bank are heard in the middle of a computation; the main thread computes.
"""

import ctypes
import os
import queue
import signal
import sys
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fairy.engines.backends import make_backend
from fairy.engines.store.store import EngineStore
from fairy.export.families import load_edit_model
from fairy.export.lora import Lora
from fairy.export.model import EditModel
from fairy.kernels.errors import Cancelled, FairyError, MachineError
from fairy.runtime.allocation import keep_freed_memory
from fairy.runtime.bank.anchor_bank import StepBank
from fairy.runtime.denoise.networks import Networks
from fairy.runtime.denoise.segment_edit import SegmentEdit
from fairy.runtime.device import DTYPES
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.plan.plan import Plan
from fairy.runtime.plan.tasks import anchor_task, frame_task
from fairy.runtime.record.progress import Monitor, Progress
from fairy.runtime.video import wire
from fairy.runtime.workers.broadcast import ArrivingBank, BankGroup, BankLost
from fairy.runtime.workers.protocol import (
    LIMIT_BYTES,
    error_message,
    pack_edited,
    rebuild_run,
    seen_pictures,
    unpack_finished,
    unpack_frames,
)

_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Request:
    """A message, the cancel flag of its job and, where it names one, its end of the bank's group."""

    message: wire.Message
    payload: bytearray
    cancel: threading.Event
    group: BankGroup | None


@dataclass(slots=True)
class Work:
    """What a worker keeps of the segment at hand; number: of its messages; generation: of its bank."""

    edit: SegmentEdit
    number: int
    generation: int = 0
    sent: dict[str, int] = field(default_factory=lambda: {"notes": 0, "fallbacks": 0})


class Outbox:
    """The pipe to the controller; several threads may send."""

    def __init__(self, fd: int) -> None:
        self._fd, self._lock = fd, threading.Lock()

    def send(self, message: wire.Message, payload: Any = b"") -> None:
        """Send one message; ends the process where the controller is gone."""
        try:
            with self._lock:
                wire.send(self._fd, message, payload)
        except (wire.Closed, OSError):
            os._exit(3)


class Listener:
    """Reads messages in a thread and acts at once on those that cannot wait for the computation."""

    def __init__(self, fd: int) -> None:
        self.tasks: queue.Queue[Request] = queue.Queue()
        self._groups: list[BankGroup] = []
        self._inbox = wire.Inbox(fd)
        self._cancel = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                message, payload = self._inbox.receive(LIMIT_BYTES)
                group = self._act(message)
                self.tasks.put(Request(message, payload, self._cancel, group))
        except BaseException:  # the controller is gone, or cannot be understood any more
            os._exit(3)

    def following(self) -> Request | None:
        """The task that comes next, if there is one already."""
        with self.tasks.mutex:
            found: Request | None = self.tasks.queue[0] if self.tasks.queue else None
        return found

    def _act(self, message: wire.Message) -> BankGroup | None:
        what = message["do"]
        if what == "job":
            self._cancel = threading.Event()
        elif what == "stop":
            self._cancel.set()
        # The shot before may still be asked for its last anchor; the one before that is done.
        kept = 0 if what in ("stop", "anchors", "bank_off") else 1 if what == "bank" else len(self._groups)
        while len(self._groups) > kept:
            self._groups.pop(0).close("it was given up")
        if "group" not in message:
            return None
        self._groups.append(BankGroup(**message["group"], device=torch.device(message["device"])))
        return self._groups[-1]


class Server:
    """Loads the networks, then computes task after task."""

    def __init__(self, listener: Listener, outbox: Outbox, checkpoint: EditModel | None = None) -> None:
        self._listener, self._outbox = listener, outbox
        self._networks = self._load(listener.tasks.get(), checkpoint)
        self._work: Work | None = None

    def _load(self, task: Request, checkpoint: EditModel | None) -> Networks:
        message = task.message
        torch.set_num_threads(message["threads"])
        device, self._dtype = torch.device(message["device"]), DTYPES[message["dtype"]]
        if device.type == "cuda":
            torch.cuda.set_device(device)
        checkpoint = checkpoint or read_checkpoint(message)
        store = EngineStore(message["store"])
        how = {"store": store, "without": message.get("without", ()), "also": message.get("also", ())}
        backend = make_backend(message["backend"], checkpoint, device, self._dtype, **how)
        return Networks(checkpoint, backend, device, bank_on_host=message.get("bank") == "host")

    def serve(self) -> None:
        """Compute until the process ends."""
        self._outbox.send({"is": "ready", "backend": self._networks.backend.name})
        while True:
            task = self._listener.tasks.get()
            try:
                self._compute(task)
            except BankLost as error:
                self._outbox.send(self._answer(task, "undone") | {"reason": str(error)})
            except Cancelled:
                self._work = None
            except FairyError as error:
                self._outbox.send(error_message(error) | self._answer(task, "error"))
            except (torch.OutOfMemoryError, MemoryError):
                sentence = "The memory does not suffice; choose a smaller long_side, or fewer anchors."
                self._outbox.send(error_message(MachineError(sentence)) | self._answer(task, "error"))

    def _compute(self, task: Request) -> None:
        what = task.message["do"]
        if what == "job":
            self._begin(task)
        elif what == "stop":
            self._work = None
            self._networks.backend.take_usage()
        elif what != "bank_off" and self._work is not None and not task.cancel.is_set():
            todo = {"bank": self._receive_bank, "anchors": self._anchors, "part": self._part, "decode": self._decode}
            todo[what](task, self._work)

    def _begin(self, task: Request) -> None:
        def tell(progress: Progress) -> None:
            self._outbox.send({"is": "step", "stage": progress.stage, "done": progress.done, **now})

        now: dict[str, Any] = {"job": task.message["job"]}
        monitor = Monitor(tell, task.cancel)
        run = rebuild_run(self._networks.checkpoint, task.message, task.payload, monitor, self._dtype)
        index = task.message["segment"]
        before, self._work = self._work, None
        carried = None
        if run.plan.params.continue_look and index > 0:
            if before is None or before.edit.bank is None:
                raise MachineError("The bank of the shot before is gone; start the edit again.")
            try:
                carried = before.edit.bank.last_anchor()
            except BankLost as error:
                raise MachineError(f"{error} Start the edit again.") from error
        pictures = seen_pictures(task.message, task.payload, run.plan)
        edit = SegmentEdit(self._networks, run, run.plan.segments[index], carried, anchor_pictures=pictures)
        self._work = Work(edit, task.message["job"])

    def _receive_bank(self, task: Request, work: Work) -> None:
        """The bank comes from the leader; parts may start at once."""
        group, edit = task.group, work.edit
        assert group is not None
        work.generation = task.message["generation"]
        here = self._answer(task, "bank")

        def waiting(step: int) -> None:
            edit.run.monitor.check()
            self._outbox.send(here | {"is": "waiting", "step": step})

        anchors, precision = len(edit.segment.anchors), edit.run.pace.precision
        empty = self._networks.new_bank(edit.run, anchors, precision, edit.carried).sendable
        assert empty is not None  # one that cannot be sent is computed by each worker for itself
        edit.bank = ArrivingBank(empty, group, waiting, lambda: self._encode_ahead(work))

        def watch() -> None:
            try:
                group.arrived(len(edit.run.plan.schedule) - 1)
                self._outbox.send(here | {"complete": True})
            except BankLost as error:
                self._outbox.send(here | {"complete": False, "reason": str(error)})

        threading.Thread(target=watch, daemon=True).start()

    def _encode_ahead(self, work: Work) -> bool:
        """Encode a frame of the micro-batch that waits behind the one at hand; False where there is nothing to do."""
        following, edit = self._listener.following(), work.edit
        if following is None or following.message["do"] != "part" or self._networks.checkpoint.condition != "image":
            return False
        if following.cancel.is_set() or following.message["job"] != work.number:
            return False
        frames = following.message["frames"]
        missing = [i for i, frame in enumerate(frames) if edit.lacks([frame])]
        if not missing:
            return False
        pictures = _frames_in(following.payload, edit.run.plan)
        edit.begin([frames[missing[0]]], [pictures[missing[0]]])
        return True

    def _anchors(self, task: Request, work: Work) -> None:
        """Phase A, for this worker alone or as the leader of those that wait for the bank."""
        edit, group = work.edit, task.group
        first: list[StepBank] = []

        def on_bank(bank: StepBank, step: int) -> None:
            sendable = bank.sendable
            if group is None or sendable is None:
                return
            if first and first[0] is not bank:  # 16 bit did not suffice: what was sent is void
                self._outbox.send(self._answer(task, "bank") | {"complete": False, "void": True})
                group.close("16 bit did not suffice")
                return
            first[:] = [bank]
            group.post(sendable, step)

        edit.bank, work.generation = None, task.message["generation"]
        run, anchors = edit.run, edit.segment.anchors
        edit.begin(anchors, _frames_in(task.payload, run.plan), anchors=True)
        steps, carried = len(run.plan.schedule), edit.carried is not None
        edit.compute(anchor_task(edit.segment, steps, carried=carried), on_bank)
        self._send_anchors(task, work)

    def _send_anchors(self, task: Request, work: Work) -> None:
        edit, anchors = work.edit, work.edit.segment.anchors
        latents = edit.latents(anchors)
        edited = list(edit.take(anchors).values())
        precision = str(edit.run.pace.precision).removeprefix("torch.")
        facts = {"bank_bytes": edit.run.tally.bank_bytes, "precision": precision, **self._tell_of(work)}
        self._outbox.send(self._answer(task, "anchors") | facts, pack_edited(edited, latents))

    def _part(self, task: Request, work: Work) -> None:
        """Phase B for one micro-batch."""
        edit, frames = work.edit, tuple(task.message["frames"])
        run, anchors = edit.run, bool(edit.segment.anchors)
        if anchors and edit.bank is None:
            raise BankLost("there is no bank")
        run.count.batches = run.count.steps = 0  # the controller counts micro-batches, this worker steps
        try:
            pictures = dict(zip(frames, _frames_in(task.payload, run.plan), strict=True))
            missing = [frame for frame in frames if edit.lacks([frame])]  # others were encoded ahead
            edit.begin(missing, [pictures[frame] for frame in missing])
            edit.compute(frame_task(frames, len(run.plan.schedule), anchors=anchors))
            self._send_edited(task, work, frames)
        finally:
            edit.forget(frames)

    def _decode(self, task: Request, work: Work) -> None:
        """A micro-batch, or the anchors, whose latents an interrupted edit left."""
        frames, run = tuple(task.message["frames"]), work.edit.run
        if "precision" in task.message:
            run.pace.precision = DTYPES[task.message["precision"]]
        plan = run.plan
        finished = unpack_finished(task.payload, len(frames), plan.source.size, plan.latent_shape, plan.channels)
        work.edit.restore(frames, *finished)
        if task.message["part"] is None:
            self._send_anchors(task, work)
        else:
            self._send_edited(task, work, frames)

    def _send_edited(self, task: Request, work: Work, frames: tuple[int, ...]) -> None:
        latents = work.edit.latents(frames)
        edited = list(work.edit.take(frames).values())
        self._outbox.send(self._answer(task, "part") | self._tell_of(work), pack_edited(edited, latents))

    def _answer(self, task: Request, what: str) -> wire.Message:
        generation = self._work.generation if self._work is not None else 0
        return {"is": what, "job": task.message.get("job"), "part": task.message.get("part"), "generation": generation}

    def _tell_of(self, work: Work) -> wire.Message:
        """What the report should know and was not told yet: stage times, sentences, engines that ran."""
        usage, run = self._networks.backend.take_usage(), work.edit.run
        times = dict(run.monitor.times_ms)
        run.monitor.times_ms.clear()
        fresh = {
            "notes": run.tally.notes[work.sent["notes"] :],
            "fallbacks": run.tally.fallbacks[work.sent["fallbacks"] :],
        }
        work.sent = {"notes": len(run.tally.notes), "fallbacks": len(run.tally.fallbacks)}
        ran = {"digests": usage.digests, "usage": usage.fallbacks, "steps": usage.steps}
        return {"times_ms": times, **fresh, **ran}


def _frames_in(payload: bytearray, plan: Plan) -> list[Frames]:
    """The source frames that came with a message."""
    return unpack_frames(payload, plan.source.size, plan.channels)


def read_checkpoint(load: wire.Message) -> EditModel:
    """The model that a message "load" names, on its device. Raises InputError."""
    loras = [Lora(Path(path), scale) for path, scale in load.get("loras", ())]
    names = ("variant", "decoder", "config", "depth_estimator", "ip_adapter")
    files: dict[str, Any] = {name: load.get(name) for name in names} | {"loras": loras}
    files["controls"] = [(Path(folder), scale) for folder, scale in load.get("controls", ())]
    return load_edit_model(load["model"], dtype=DTYPES[load["dtype"]], device=torch.device(load["device"]), **files)


def load_model(load: wire.Message) -> EditModel | None:
    """The same for workers that will be forked; None where it cannot be loaded, so that each says why by itself."""
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    try:
        return read_checkpoint(load)
    except FairyError:
        return None


def end_with_parent() -> None:
    """Have the kernel kill this process when the controller's thread that started it ends, even while it is stopped.

    The pool starts all workers from one thread that lives as long as the pool.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(checkpoint: EditModel | None = None) -> None:
    """Run a worker on stdin and a private copy of stdout, so that a stray print cannot break the wire.

    Args:
        checkpoint: the model, where the process that this one was forked from has loaded it.
    """
    end_with_parent()
    keep_freed_memory()
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    outbox, listener = Outbox(out), Listener(0)
    try:
        Server(listener, outbox, checkpoint).serve()
    except FairyError as error:
        outbox.send(error_message(error))
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # destructors of broken groups would wait


if __name__ == "__main__":
    main()
