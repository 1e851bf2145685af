"""What TensorRT's engines of one device share: a stream, scratch memory, and captured CUDA graphs.

Engines take turns on one stream, so that they can take turns in one piece of scratch memory too: what is needed is that
of the largest graph, not the sum of all.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

MAX_GRAPHS = 16  # captured per set of shapes; each holds an execution context
KEPT_CALLS = 256  # calls after which a graph that was not replayed gives up its place
_SMALLEST_BYTES = 512


class Stream(Protocol):
    """Where engines of one device run, one after the other."""

    @property
    def handle(self) -> int:
        """What CUDA calls the stream."""
        ...

    def ordered(self) -> AbstractContextManager[None]:
        """Work inside runs after what the caller's stream was given before, and before what it is given next."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` gives to the stream, recorded without running it; the result replays it."""
        ...


class CudaStream:
    """A CUDA stream of its own: on the default stream TensorRT synchronises more often than it has to."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    @property
    def handle(self) -> int:
        """The address that stands for the stream."""
        return int(self._stream.cuda_stream)

    @contextmanager
    def ordered(self) -> Iterator[None]:
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            # Tensors are freed in the order of the caller's stream, so none goes while the engine still uses it.
            caller.wait_stream(self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            enqueue()
        return graph.replay


class ScratchMemory:
    """Device memory that the engines of one stream use in turn; it grows, and goes when the last of them leaves."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._block: Tensor | None = None
        self._users = 0

    def join(self) -> None:
        """One more engine uses it."""
        self._users += 1

    def leave(self) -> None:
        """An engine was closed; the last one takes the memory with it."""
        self._users -= 1
        if self._users == 0:
            self._block = None

    def at_least(self, num_bytes: int) -> tuple[int, int]:
        """Address and size of a block of at least so many bytes; an earlier block is given back."""
        if self._block is None or self._block.numel() < num_bytes:
            self._block = None
            self._block = torch.empty(max(num_bytes, _SMALLEST_BYTES), dtype=torch.uint8, device=self._device)
        return self._block.data_ptr(), self._block.numel()


class GraphCache:
    """Captured graphs by what they are bound to: every address a graph uses is part of its key.

    The first call with a key runs plainly, because most keys never come again; the second one is captured.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[Callable[[], None], Any]] = {}
        self._last_call: dict[Hashable, int] = {}
        self._calls = 0
        self._usable = True

    def find(self, key: Hashable) -> Callable[[], None] | None:
        """The graph of a key; counts as a call."""
        self._calls += 1
        if key not in self._graphs:
            return None
        self._last_call[key] = self._calls
        return self._graphs[key][0]

    def wants(self, key: Hashable) -> bool:
        """Whether to capture this key: it was seen before, and there is a place for it."""
        seen = key in self._last_call
        self._last_call[key] = self._calls
        for old in [k for k, call in self._last_call.items() if self._calls - call > KEPT_CALLS]:
            del self._last_call[old]
            self._graphs.pop(old, None)
        return seen and self._usable and len(self._graphs) < MAX_GRAPHS

    def keep(self, key: Hashable, graph: Callable[[], None], owner: Any) -> None:
        """Replay `graph` when the key comes again; `owner` is what has to live as long."""
        self._graphs[key] = graph, owner

    def clear(self) -> None:
        """Forget all graphs."""
        self._graphs.clear()
        self._last_call.clear()

    def give_up(self) -> None:
        """Capture nothing any more."""
        self.clear()
        self._usable = False


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a CUDA device the current one, as TensorRT needs it where it loads and builds."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
