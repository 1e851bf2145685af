"""Every scenario through NVIDIA's real Python bindings. A script: bindings share one import name, a process has one."""

import ctypes
import os
import sys
import tempfile
from pathlib import Path

import tensorrt_bindings
from checked import CheckedModule
from scenarios import GRAPH, RANGES, SCENARIOS, World, compute
from scripted import HostStream, ScriptedTensorRT

library = ctypes.CDLL(os.environ["FAKE_LIBRARY"])
calls: set[str] = set()
for scenario in SCENARIOS:
    script = ScriptedTensorRT(GRAPH, RANGES, compute, tensorrt_bindings)
    checked = CheckedModule(tensorrt_bindings, script, library)
    with tempfile.TemporaryDirectory() as folder:
        scenario(World(checked, script, HostStream(script), Path(folder)))
    calls |= checked.calls
    print("passed", scenario.__name__, flush=True)

# That mistakes are noticed is what all this rests on.
builder = checked.Builder(tensorrt_bindings.Logger())
mistakes = {
    "an argument of another type": lambda: builder.create_optimization_profile().set_shape("sample", 1, 2, 3),
    "an argument too many": lambda: builder._real.create_builder_config(1),
    "another name": lambda: builder._real.create_config(),
    "another keyword": lambda: builder._real.build_serialized_network(net=1, config=2),
}
for what, mistake in mistakes.items():
    try:
        mistake()
    except (TypeError, AttributeError):
        continue
    sys.exit(f"{what} was not noticed")
print("version", tensorrt_bindings.__version__)
print("calls", *sorted(calls))
sys.stdout.flush()
os._exit(0)  # the bindings' own tear-down expects the real library
