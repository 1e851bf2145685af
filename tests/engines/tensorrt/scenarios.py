"""What is asked of the builder and the engine, of a scripted TensorRT alone and behind NVIDIA's real bindings.

Each scenario takes a `World` and raises where something is not as it should be.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairy.engines.engine import BuildOptions, EngineSpec, Shapes
from fairy.engines.tensorrt.build import PlanRequest, build_plan
from fairy.engines.tensorrt.build_progress import BuildProgress, run_beside
from fairy.engines.tensorrt.execution import Place, TensorRTEngine
from fairy.engines.tensorrt.gpu import MAX_GRAPHS, ScratchMemory
from fairy.export.graphs import SelfAttention, unet_spec
from fairy.kernels.errors import Cancelled, InputError, MachineError

LAYER = SelfAttention("mid.attn1", 0, heads=2, channels=16, segments=("shared",), emits=True)
GRAPH = unet_spec("unet_frame", (LAYER,), in_channels=8, out_channels=4, text_channels=6)
SHAPES = Shapes(height=(64, 64, 128), width=(64, 128, 128), frames=(1, 2, 5), anchors=5, tokens=7)
RANGES = SHAPES.ranges(GRAPH, 8)
(KEYS, VALUES), (CONTEXT_K, CONTEXT_V) = LAYER.emitted, LAYER.context(0)


def compute(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Something that depends on every input, in the shapes of the graph."""
    sample, time, text = inputs["sample"], inputs["timestep"], inputs["text"]
    level = text.mean((1, 2)) + inputs[CONTEXT_K].sum((1, 2, 3)) - inputs[CONTEXT_V].mean((1, 2, 3))
    output = sample[:, :, :4] * 2 + time[:, None, None, None] + level[:, None, None, None, None]
    tokens = sample.flatten(3).transpose(2, 3).repeat(1, 1, 1, 2)
    return {"output": output, KEYS: tokens + 1, VALUES: tokens * 3}


class World:
    """A TensorRT, a folder, and an engine's surroundings."""

    def __init__(self, trt: Any, script: Any, stream: Any, folder: Path) -> None:
        self.trt, self.script, self.stream, self.folder = trt, script, stream, folder
        self.place = Place(torch.device("cpu"), stream, ScratchMemory(torch.device("cpu")))

    def build(self, on_progress: Callable[[str, int, int], bool] = lambda *_: True, **options: Any) -> bytes:
        request = PlanRequest("unet_frame", self.folder / "model.onnx", RANGES, BuildOptions(**options))
        progress = BuildProgress(on_progress)
        return bytes(run_beside(lambda: build_plan(self.trt, request, progress), progress))

    def engine(self) -> TensorRTEngine:
        (self.folder / "engine.plan").write_bytes(b'{"plan": 1}')
        spec = EngineSpec(GRAPH, "tensorrt", "cpu", "float32")
        return TensorRTEngine(self.trt, spec, self.folder / "engine.plan", self.place)


def aligned(*shape: int, seed: int | None = None) -> Tensor:
    """A float32 tensor at an address that TensorRT takes, as CUDA's are."""
    count = torch.Size(shape).numel()
    block = torch.full((count + 64,), float("nan"))
    start = -block.data_ptr() % 256 // 4
    tensor = block[start : start + count].view(shape)
    return tensor if seed is None else tensor.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def inputs(frames: int = 2, side: int = 8, seed: int = 0) -> dict[str, Tensor]:
    return {
        "sample": aligned(3, frames, 8, side, side, seed=seed),
        "timestep": torch.tensor(3.5 + seed).expand(frames),
        "text": aligned(3, 7, 6, seed=seed + 1),
        CONTEXT_K: aligned(3, 1, side * side, 16, seed=seed + 2),
        CONTEXT_V: aligned(3, 1, side * side, 16, seed=seed + 3),
    }


def expected(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return compute({name: tensor.double() for name, tensor in given.items()})


def assert_right(found: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    for name, value in expected(given).items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-5, msg=f"{name} differs")


def builds(world: World) -> None:
    """Every option reaches TensorRT, and the plan comes back."""
    cache = world.folder / "deeper" / "timing.cache"
    steps: list[tuple[str, int, int]] = []

    def told(*step: Any) -> bool:
        steps.append(step)
        return True

    plan = world.build(told, mem_pool_bytes=1 << 30, optimization_level=4, timing_cache=cache)
    assert plan == b'{"plan": "unet_frame"}'
    script, flags = world.script, world.trt.NetworkDefinitionCreationFlag
    assert script.said("create_network") == [(1 << int(flags.STRONGLY_TYPED),)]
    assert script.said("set_memory_pool_limit") == [(world.trt.MemoryPoolType.WORKSPACE, 1 << 30)]
    assert script.said("clear_flag") == [(world.trt.BuilderFlag.TF32,)]
    assert script.config.builder_optimization_level == 4
    assert {name: tuple(rest) for name, *rest in script.said("set_shape")} == RANGES
    assert [layer.attention.decomposable for layer in script.layers] == [False, True]
    assert steps == [("Building", 0, 3), *[("Building", n, 3) for n in (1, 2, 3)], ("Building", 3, 3)]
    assert cache.read_bytes() == b"measured"
    assert [path.name for path in cache.parent.iterdir()] == ["timing.cache"]
    world.build(timing_cache=cache)
    assert script.said("create_timing_cache") == [(b"",), (b"measured",)]


def foreign_timing_cache(world: World) -> None:
    """One that TensorRT refuses is replaced, not fatal."""
    cache = world.folder / "foreign.cache"
    cache.write_bytes(b"of another GPU")
    world.script.fails = "timing cache"
    world.build(timing_cache=cache)
    assert world.script.said("create_timing_cache") == [(b"of another GPU",), (b"",)]
    assert cache.read_bytes() == b"measured"


def failures_say_why(world: World) -> None:
    """Whatever fails, TensorRT's own words are in the one sentence."""
    said = {
        "Builder": (MachineError, "does not work on this machine: .*; run `fairy doctor`"),
        "parse": (MachineError, "cannot read the graph of unet_frame: Resize: unsupported data type in node 7"),
        "build": (MachineError, "could not build unet_frame: No implementation for node X; Engine build failed; where"),
        "profile": (MachineError, "does not take the shapes of unet_frame: .*; choose smaller ranges"),
        "set_shape": (InputError, r"sample cannot have shapes from \(1, 1, 8, 8, 8\) over .*: min is above max"),
        "pool": (InputError, "A memory pool of 5 bytes is not taken"),
    }
    for fails, (error, text) in said.items():
        world.script.fails = fails
        with pytest.raises(error, match=text):
            world.build(mem_pool_bytes=5)
    world.script.fails = ""
    with pytest.raises(InputError, match="Optimization level 9 is not known to TensorRT; choose 0 to 5"):
        world.build(optimization_level=9)
    with pytest.raises(InputError, match="timing cache .* cannot be read: Is a directory"):
        world.build(timing_cache=world.folder)


def stops(world: World) -> None:
    """The caller's no, and the caller's exception, end the build at the next step."""
    seen: list[int] = []

    def until_second(phase: str, done: int, total: int) -> bool:
        seen.append(done)
        return done < 2

    with pytest.raises(Cancelled, match="cancelled"):
        world.build(until_second)
    assert seen == [0, 1, 2]

    def broken(*step: Any) -> bool:
        raise ArithmeticError("in the caller")

    with pytest.raises(ArithmeticError, match="in the caller"):
        world.build(broken)


def runs(world: World) -> None:
    """Values, also with other values at the same addresses, through captured graphs, and at other shapes."""
    engine = world.engine()
    given = inputs()
    bank = {KEYS: aligned(3, 2, 64, 16), VALUES: aligned(3, 2, 64, 16)}
    for seed in range(5):
        fresh = inputs(seed=seed)
        for name in (CONTEXT_K, CONTEXT_V):
            given[name].copy_(fresh[name])
        given |= {name: fresh[name] for name in ("sample", "timestep", "text")}
        found = engine(given, bank)
        assert found[KEYS] is bank[KEYS]
        assert found[VALUES] is bank[VALUES]
        assert_right(found, given)
    assert world.stream.replays == 3  # the first call ran plainly, the second was captured as well
    assert len(world.script.said("execute")) == 3
    contexts = len(world.script.said("create_execution_context"))
    assert contexts == 2
    given[CONTEXT_K] = aligned(3, 1, 64, 16, seed=9)  # another address: the captured graph must not be used
    assert_right(engine(given, bank), given)
    assert world.stream.replays == 3
    larger = inputs(frames=5, side=16, seed=4)
    assert_right(engine(larger), larger)  # needs more scratch memory, so the earlier graph is void
    assert_right(engine(given, bank), given)
    sizes = [size for _, size in world.script.said("set_device_memory")]
    assert sizes[0] >= 128
    assert world.stream.entered == 8


def large_tensors_are_not_copied(world: World) -> None:
    """Context is read, and `out` written, where it lies; what TensorRT cannot take is copied instead."""
    engine, given = world.engine(), inputs()
    bank = {KEYS: aligned(3, 2, 64, 16)}
    engine(given, bank)
    (prepared,) = engine._prepared.values()
    bound = world.script.last_context.addresses
    assert bound[KEYS] == bank[KEYS].data_ptr()
    assert bound[CONTEXT_K] == given[CONTEXT_K].data_ptr()
    assert set(prepared.buffers) == {"sample", "timestep", "text", "output", VALUES}
    strided = inputs()
    strided[CONTEXT_V] = strided[CONTEXT_V].transpose(2, 3).contiguous().transpose(2, 3)
    odd = torch.full((1 + 3 * 2 * 64 * 16,), float("nan"))[1:].view(3, 2, 64, 16)
    found = engine(strided, {KEYS: odd})
    assert found[KEYS] is odd
    assert_right(found, strided)


def results_are_the_callers(world: World) -> None:
    """An output that nobody gave a place is a new tensor every time, although it is computed in a buffer."""
    engine = world.engine()
    first_inputs, second_inputs = inputs(seed=1), inputs(seed=2)
    first = engine(first_inputs)
    second = engine(second_inputs)
    assert_right(first, first_inputs)
    assert_right(second, second_inputs)


def graphs_are_limited(world: World) -> None:
    """Many banks do not mean many contexts: there is a place for so many graphs, and the first ones keep theirs."""
    engine, shared = world.engine(), inputs()
    banks = [{**shared, CONTEXT_K: aligned(3, 1, 64, 16, seed=i)} for i in range(MAX_GRAPHS + 3)]
    for _ in range(3):
        for bank in banks:
            assert_right(engine(bank), bank)
    assert world.stream.replays == MAX_GRAPHS
    assert len(world.script.said("create_execution_context")) == 1 + MAX_GRAPHS


def runs_without_graphs(world: World) -> None:
    """An engine that cannot be captured runs all the same."""
    engine, given = world.engine(), inputs()
    world.script.fails = "capture"
    for _ in range(4):
        assert_right(engine(given), given)
    assert world.stream.replays == 0


def refuses(world: World) -> None:
    """Wrong tensors, a wrong plan and every failing call are refused in a sentence."""
    engine, given = world.engine(), inputs()
    with pytest.raises(InputError, match=r"built for sample from .* to \[3, 5, 8, 16, 16\], not \[3, 6,"):
        engine(inputs(frames=6))
    with pytest.raises(InputError, match="text is missing or unknown"):
        engine({name: tensor for name, tensor in given.items() if name != "text"})
    with pytest.raises(InputError, match="sample must be torch.float32 on cpu, not torch.float16 on cpu"):
        engine({**given, "sample": given["sample"].half()})
    with pytest.raises(InputError, match=r"must be \[3, 2, 64, 16\], not \[3, 2, 64, 8\]"):
        engine(given, {KEYS: aligned(3, 2, 64, 8)})
    with pytest.raises(InputError, match="has no output nothing"):
        engine(given, {"nothing": given["text"]})
    for fails, text in {
        "context": "made no execution context for unet_frame",
        "set_input_shape": r"does not take sample \[3, 2, 8, 8, 8\]",
        "set_tensor_address": "does not take the memory of sample",
        "execute": "could not run unet_frame: Cask convolution execution",
    }.items():
        world.script.fails = fails
        with pytest.raises(MachineError, match=text):
            world.engine()(given)
    for fails, text in {
        "deserialize": "cannot load the engine of unet_frame: Serialization assertion .*; build it again",
        "dtype": "does not hold unet_frame in float32: .* differs; build it again",
    }.items():
        world.script.fails = fails
        with pytest.raises(MachineError, match=text):
            world.engine()
    world.script.fails = ""
    engine.close()
    with pytest.raises(InputError, match="The engine of unet_frame was closed"):
        engine(given)


def scratch_goes_with_the_last(world: World) -> None:
    """Two engines share their scratch memory, and the second one's end frees it."""
    first, second, given = world.engine(), world.engine(), inputs()
    first(given)
    second(given)
    addresses = {address for address, _ in world.script.said("set_device_memory")}
    assert addresses == {world.place.scratch._block.data_ptr()}
    first.close()
    first.close()
    assert_right(second(given), given)
    second.close()
    assert world.place.scratch._block is None


def names_must_agree(world: World) -> None:
    """A file whose inputs are not those of the ranges is not built."""
    request = PlanRequest("unet_frame", world.folder / "model.onnx", {**RANGES, "extra": ((1,),) * 3}, BuildOptions())
    progress = BuildProgress(lambda *_: True)
    with pytest.raises(InputError, match="disagree about the input extra"):
        build_plan(world.trt, request, progress)
    del progress


SCENARIOS: tuple[Callable[[World], None], ...] = (
    builds,
    foreign_timing_cache,
    failures_say_why,
    stops,
    runs,
    large_tensors_are_not_copied,
    results_are_the_callers,
    graphs_are_limited,
    runs_without_graphs,
    refuses,
    scratch_goes_with_the_last,
    names_must_agree,
)
