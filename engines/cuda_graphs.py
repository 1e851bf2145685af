"""CUDA graphs for small batches, where launching takes longer than computing.

The first call of a combination of shapes is recorded; later ones copy their inputs into the recording's own buffers and
replay it. Copying a step's anchors costs their bytes twice (312 MB a step for SD 1.5: some 0.15 ms), launching some
600 kernels from Python about 18 ms. The first recording was written to CUDA's documentation; it has not run on a GPU.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]
Record = Callable[[Callable[[], tuple[Tensor, ...]], torch.device], tuple[Callable[[], None], tuple[Tensor, ...]]]

MAX_SAMPLES = 12  # groups·frames up to which recording pays: launching binds below a batch of 8 to 12
MAX_RECORDINGS = 8  # shapes that are kept at once
_WARM_UPS = 3  # calls before recording, in which libraries choose algorithms and allocate


@dataclass(slots=True)
class _Recording:
    inputs: dict[str, Tensor]
    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]


class GraphRunner:
    """Replays `run` for batches of at most `MAX_SAMPLES`; larger ones are run as they are.

    Outputs are the recording's own buffers, which the next call of the same shapes overwrites: copy them.
    """

    def __init__(self, run: Run, record: Record | None = None) -> None:
        """`record`: records a call on a device and gives what replays it, and its outputs; None = CUDA's."""
        self._run = run
        self._record = record or record_cuda_graph
        self._recordings: OrderedDict[tuple[object, ...], _Recording] = OrderedDict()

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        sample = inputs["sample"]
        if sample.shape[0] * sample.shape[1] > MAX_SAMPLES:
            return self._run(inputs)
        key = tuple((name, t.shape, t.dtype) for name, t in inputs.items())
        recording = self._recordings.pop(key, None) or self._new(inputs)
        self._recordings[key] = recording  # the last one used is the last one dropped
        if len(self._recordings) > MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        for name, buffer in recording.inputs.items():
            buffer.copy_(inputs[name])
        recording.replay()
        return recording.outputs

    def _new(self, inputs: Mapping[str, Tensor]) -> _Recording:
        buffers = {name: _buffer_like(t) for name, t in inputs.items()}
        replay, outputs = self._record(lambda: self._run(buffers), inputs["sample"].device)
        return _Recording(buffers, replay, outputs)


def record_cuda_graph(
    call: Callable[[], tuple[Tensor, ...]], device: torch.device
) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Warm a call up on a stream of its own, as recording wants, and record it; what replays it, and its outputs.

    The stream is named because `torch.cuda.graph` would take one of the device that it was first used on.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                call()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a video's reader, another Editor) may go on allocating meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = call()
    return graph.replay, outputs


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Within it a GPU is CUDA's current one, which recordings and Inductor's packages take."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _buffer_like(t: Tensor) -> Tensor:
    """A buffer with a tensor's values and layout; what is expanded becomes whole."""
    return t.clone(memory_format=torch.preserve_format)
