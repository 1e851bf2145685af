"""Runs one ONNX file in onnxruntime and compares it with saved results: `python -m fairy.export.onnx.parity_session`.

It is a process of its own without torch, so that the file's weights are all it holds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def compare(model: Path, folder: Path) -> list[tuple[float, float]]:
    """Largest absolute error and relative L2 error of each saved run `<number>.safetensors` in `folder`, in order.

    A run holds the inputs as `in.<name>` and what is expected as `out.<name>`.
    """
    from safetensors.numpy import load_file

    session = _session(model)
    errors = []
    for number in range(len(list(folder.glob("*.safetensors")))):
        tensors = load_file(folder / f"{number}.safetensors")
        feed = {name.removeprefix("in."): t for name, t in tensors.items() if name.startswith("in.")}
        names = [output.name for output in session.get_outputs()]
        pairs = [(found, tensors[f"out.{n}"]) for n, found in zip(names, session.run(names, feed), strict=True)]
        errors.append((max(_absolute(*pair) for pair in pairs), max(_relative(*pair) for pair in pairs)))
    return errors


def _session(model: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # sizes change from run to run: an arena would keep the largest of each
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _absolute(found: Any, expected: Any) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"a result has the shape {found.shape}, not {expected.shape}")
    return float(np.abs(found.astype(np.float32) - expected).max())


def _relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found.astype(np.float32) - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    print(json.dumps(compare(Path(sys.argv[1]), Path(sys.argv[2]))))
