"""The kernel's entries called as TensorRT calls the plugin, in Triton's interpreter: pointers, whole numbers, output.

Compared with attention in float64 on keys that are joined and repeated, on lengths that are no multiple of a block.
"""

import math

import torch
import triton

from fairy.engines.tensorrt.plugin import ENTRIES, kernel_numbers
from fairy.kernels import ahead_of_time
from fairy.kernels.ahead_of_time import Blocks, Variant

assert triton.knobs.runtime.interpret
BLOCKS = Blocks(16, 16, 4, 1)


def launch(name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    """One launch with the arguments in TensorRT's order: inputs, numbers, outputs."""
    entry, names = ENTRIES[name]
    q, out = tensors[0], torch.full_like(tensors[0], float("nan"))
    rows, tokens, heads, head_dim = q.shape
    function = ahead_of_time._FUNCTIONS[entry]
    constants = ahead_of_time._constants(Variant(head_dim, q.dtype, 90, entry), BLOCKS)
    order = [argument for argument in function.arg_names if argument not in constants]
    numbers = kernel_numbers(dict(zip(names, (tuple(t.shape) for t in tensors), strict=True)))
    between = order[len(names) : -1]
    assert order[: len(names)] == list(names)
    assert order[-1] == "out"
    assert sorted(between) == sorted(numbers)
    grid = (math.ceil(tokens / BLOCKS.m) * rows * heads,)
    function[grid](*tensors, *(numbers[number] for number in between), out, **constants)
    return out


def expected(tensors: list[torch.Tensor], joined: bool) -> torch.Tensor:
    q, *rest = (tensor.double() for tensor in tensors)
    keys, values = rest[-2:]
    frames = len(q) // len(keys)
    keys, values = keys.repeat_interleave(frames, 0), values.repeat_interleave(frames, 0)
    if joined:
        keys, values = torch.cat([rest[0], keys], 1), torch.cat([rest[1], values], 1)
    scores = torch.einsum("bshd,bthd->bhst", q, keys) / math.sqrt(q.shape[-1])
    return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), values)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).half()


own = (4, 21, 2, 40)
cases = {
    "AnchorAttention": [random(*own), random(*own), random(*own) + 1, random(2, 35, 2, 40), random(2, 35, 2, 40) - 1],
    "PlainAttention": [random(3, 18, 3, 64), random(3, 7, 3, 64), random(3, 7, 3, 64) + 1],
}
for case, given in cases.items():
    error = (launch(case, given).double() - expected(given, case == "AnchorAttention")).abs().max().item()
    print(case, f"{error:.1e}")
    assert error < 2e-3, f"{case} is off by {error}"
