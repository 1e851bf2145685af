"""The files of an exported graph, and what an ONNX file may refer to: weights beside it and nothing else."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairy.kernels.errors import MachineError

MODEL = "model.onnx"


def data_file(path: Path) -> Path:
    """Where the large weights of an ONNX file stand."""
    return path.with_name(f"{path.name}.data")


def check_references(folder: Path) -> None:
    """Make sure that `folder/model.onnx` names no other file than the weights beside it, both of them plain.

    ONNX Runtime and TensorRT open whatever path a file names, so this runs before either sees it.

    Raises:
        MachineError: a file is missing, is a link or has several names, or another file is referred to.
    """
    import onnx

    path = folder / MODEL
    _check_plain(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own kinds
        raise MachineError(f"{path} is not a readable ONNX file.") from error
    locations = {location for tensor in _external(model) for location in _locations(tensor)}
    if locations - {data_file(path).name}:
        raise MachineError(
            f"{path} refers to {min(locations)!r}, but weights may only stand in {data_file(path).name}."
        )
    if locations:
        _check_plain(data_file(path))


def _check_plain(path: Path) -> None:
    try:
        status = os.lstat(path)
    except OSError as error:
        raise MachineError(f"{path} is not there ({error.strerror}).") from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise MachineError(f"{path} must be a regular file with one name; links are not followed.")


def _external(message: Any) -> Iterator[Any]:
    """Every tensor whose values stand outside the file, wherever it is: graphs, subgraphs, functions, attributes."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = value if hasattr(value, "__len__") else [value]
            for part in parts:
                yield from _external(part)


def _locations(tensor: Any) -> list[str]:
    """Where a tensor says its values stand; a tensor that names no place counts as naming an empty one."""
    return [entry.value for entry in tensor.external_data if entry.key == "location"] or [""]
