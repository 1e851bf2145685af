"""CUDA graphs for small batches, where launching takes longer than computing.

The first call of a combination of shapes is recorded, and replayed once beside the plain call: where the two differ by
more than rounding, or recording fails, that combination runs plainly and the report says so. Later calls copy their
inputs into the recording's own buffers and replay it. Copying a step's anchors costs their bytes twice (312 MB a step
for SD 1.5: some 0.15 ms), launching some 600 kernels from Python about 18 ms.

All recordings of a backend share one memory pool, so that their working memory is that of the largest. That is safe
because they are replayed one after another, and because what a replay gives is copied before the next.
On an H200 replays gave the plain calls' bytes.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairy.engines.engine import EngineSpec, check_inputs
from fairy.engines.numerics import steady_numerics
from fairy.kernels.errors import InputError
from fairy.kernels.rounding import agree

Run = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]
Record = Callable[[Callable[[], tuple[Tensor, ...]], torch.device], tuple[Callable[[], None], tuple[Tensor, ...]]]

MAX_SAMPLES = 12  # samples of a call up to which recording pays: launching binds below a batch of 8 to 12
MAX_RECORDINGS = 8  # shapes that are kept at once
_WARM_UPS = 2  # calls on the recording's stream before it, in which libraries choose algorithms and allocate


@dataclass(slots=True)
class _Recording:
    inputs: dict[str, Tensor]
    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        for name, buffer in self.inputs.items():
            buffer.copy_(inputs[name])
        self.replay()
        return self.outputs


class Recorder:
    """Records the calls of one backend, all in one memory pool."""

    def __init__(self, record: Record | None = None) -> None:
        """`record`: records a call on a device and gives what replays it, and its outputs; None = CUDA's."""
        self._record = record
        self._pool: Any = None

    def __call__(
        self, call: Callable[[], tuple[Tensor, ...]], device: torch.device
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """What replays a call, and its outputs, which stay at their place."""
        if self._record is not None:
            return self._record(call, device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return record_cuda_graph(call, device, self._pool)


class GraphRunner:
    """Replays `run` for batches of at most `MAX_SAMPLES`; larger ones are run as they are.

    Outputs are the recording's own buffers, which the next call of the same shapes overwrites: copy them.
    """

    def __init__(
        self, run: Run, record: Record | None = None, tell: Callable[[str], None] = lambda sentence: None
    ) -> None:
        """
        Args:
            record: see `Recorder`, which several runners may share; None = one of its own.
            tell: hears, in a sentence, what is not replayed and why.
        """
        self._run = run
        self._record = record or Recorder()
        self._tell = tell
        self._recordings: OrderedDict[tuple[object, ...], _Recording | None] = OrderedDict()

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if _samples(inputs) > MAX_SAMPLES:
            return self._run(inputs)
        key = tuple((name, t.shape, t.dtype) for name, t in inputs.items())
        if key not in self._recordings:
            return self._first(key, inputs)
        self._recordings.move_to_end(key)
        recording = self._recordings[key]
        return self._run(inputs) if recording is None else recording(inputs)

    def _first(self, key: tuple[object, ...], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """A recording, compared with the plain call; or that.

        What counts is the replay's result from the first time on: every worker has its own first time.
        """
        expected = tuple(t.clone() for t in self._run(inputs))
        try:
            recording = self._new(inputs)
            found = recording(inputs)
            if not all(map(agree, found, expected)):
                raise RuntimeError("the replay gave something else")
        except torch.OutOfMemoryError:
            self._recordings.clear()
            self._keep(key, None, "the memory does not suffice")
        except RuntimeError as error:  # whatever CUDA, or what is recorded, has against it
            self._keep(key, None, str(error).partition("\n")[0][:200])
        else:
            self._keep(key, recording)
            return found
        return expected

    def _keep(self, key: tuple[object, ...], recording: _Recording | None, reason: str = "") -> None:
        self._recordings[key] = recording  # the last one used is the last one dropped
        if len(self._recordings) > MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        if recording is None:
            self._tell(f"A CUDA graph was not used, which is slower: {reason}.")

    def _new(self, inputs: Mapping[str, Tensor]) -> _Recording:
        buffers = {name: _buffer_like(t) for name, t in inputs.items()}
        replay, outputs = self._record(lambda: self._run(buffers), next(iter(inputs.values())).device)
        return _Recording(buffers, replay, outputs)


class RecordedEngine:
    """A graph that prepares nothing ahead, such as the autoencoder's, through a `GraphRunner`."""

    def __init__(self, spec: EngineSpec, run: Run) -> None:
        self.spec = spec
        self._run: Run | None = run

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph; see `Engine`. Raises InputError where an input is missing or too many are given."""
        if self._run is None:
            raise InputError(f"The engine of {self.spec.graph.name} was closed.")
        check_inputs(self.spec.graph, inputs)
        with torch.inference_mode(), steady_numerics(self.spec.precision):
            results = self._run(inputs)
            given = out or {}
            names = [tensor.name for tensor in self.spec.graph.outputs]
            return {
                name: given[name].copy_(t) if name in given else t.clone()
                for name, t in zip(names, results, strict=True)
            }

    def close(self) -> None:
        """Let go of the recordings."""
        self._run = None


def record_cuda_graph(
    call: Callable[[], tuple[Tensor, ...]], device: torch.device, pool: Any = None
) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Warm a call up on a stream of its own, as recording wants, and record it; what replays it, and its outputs.

    The stream is named because `torch.cuda.graph` would take one of the device that it was first used on, and put back
    where recording fails: CUDA's own way out of that leaves it current.
    """
    with torch.cuda.device(device):
        before = torch.cuda.current_stream(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                call()
        before.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (a video's reader, another Editor) may go on allocating meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                outputs = call()
        except BaseException:
            torch.cuda.set_stream(before)
            raise
    return graph.replay, outputs


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Within it a GPU is CUDA's current one, which recordings and Inductor's packages take."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _samples(inputs: Mapping[str, Tensor]) -> int:
    """Pictures that go through the network together: those of an autoencoder, or of a UNet's groups and frames."""
    pictures = next(iter(inputs.values()))
    return pictures.shape[0] * (pictures.shape[1] if pictures.dim() == 5 else 1)


def _buffer_like(t: Tensor) -> Tensor:
    """A buffer with a tensor's values and layout; what is expanded becomes whole."""
    return t.clone(memory_format=torch.preserve_format)
