"""What one denoising step and one decoded picture do, counted: a guard that needs neither a GPU nor a quiet machine.

Counted is what reaches PyTorch's dispatcher, on the CPU, with the embedded model; composite operations are taken apart
first, as a backend would. The same program launches the same operations on a GPU, so that one more launch, copy,
allocation or synchronisation here is one more there. What an operation does inside itself is not seen: our fused
attention is one launch, and its scratch memory is its own.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from fairy.benchmarks.records import Record, make_record
from fairy.engines.eager import EagerBackend
from fairy.engines.store.key import canonical_digest
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.shapes import random_inputs
from fairy.runtime.editor import Editor
from fairy.runtime.models import embedded_model
from fairy.runtime.plan.params import EditParams
from fairy.runtime.record.progress import Progress

KINDS = ("launches", "copies", "allocations", "allocated_bytes", "synchronisations", "flops")
CPU = torch.device("cpu")
WIDTH, HEIGHT, FRAMES, ANCHORS = 64, 48, 7, 3
_STEPS = 4  # the second is counted: the first may prepare, the last draws no noise

# Where the host waits for a device: it reads a value, or a result's shape depends on values.
_SYNCHRONISING = {
    f"aten::{name}"
    for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")
}
_HOST_READS = (Tensor.cpu, Tensor.tolist)  # a GPU's tensor has no numpy() before cpu()
_COPIES = {"aten::clone", "aten::copy_", "aten::_to_copy"}
_NO_KERNEL = {"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::_local_scalar_dense"}


class _Dispatched(TorchDispatchMode):
    """Counts every operation that reaches a backend."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:
                taken_apart = func.decompose(*args, **kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
        out = func(*args, **kwargs)
        name = func._schema.name
        given = _storages((args, kwargs))
        made = {key: size for key, size in _storages(out).items() if key not in given}
        self._counts["allocations"] += len(made)
        self._counts["allocated_bytes"] += sum(made.values())
        self._counts["copies"] += name in _COPIES
        self._counts["synchronisations"] += name in _SYNCHRONISING or _indexes_by_mask(name, args)
        self._counts["launches"] += (bool(made) or func._schema.is_mutable) and name not in _NO_KERNEL
        self._counts["flops"] += _flops(func, args, kwargs, out)
        return out


class _HostReads(TorchFunctionMode):
    """Counts what reads values without passing the dispatcher where the tensor is on the CPU already."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._counts["synchronisations"] += func in _HOST_READS
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what PyTorch does inside the block, in this thread; the counter grows while it runs. See `KINDS`."""
    counts: Counter[str] = Counter()
    with _HostReads(counts), _Dispatched(counts):
        yield counts


def run_counts(model: str | None = None) -> list[Record]:
    """Records of one step of phase A, one step of phase B and one decoded picture, in float32 on the CPU.

    Args:
        model: a folder or hub id; None = the embedded model.
    """
    checkpoint = load_checkpoint(embedded_model() if model is None else model)
    with Editor.from_pretrained(model, device="cpu", dtype="float32", backend="eager") as editor:
        counted = count_steps(editor)
    counted["VAE decode"] = count_decode(checkpoint)
    common = {"benchmark": "counts", "width": WIDTH, "height": HEIGHT, "anchors": ANCHORS, "branches": 3}
    recipe = common | {"networks": {name: _configuration(getattr(checkpoint, name)) for name in ("unet", "vae")}}
    return [make_record(name, recipe | {"part": name}, CPU, counts=counts) for name, counts in counted.items()]


def count_steps(editor: Editor) -> dict[str, dict[str, int]]:
    """The counts of one step of each phase as an edit runs it, guidance and sampler included."""
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    params = EditParams(
        "make it sepia",
        num_inference_steps=_STEPS,
        anchors=ANCHORS,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        sampler="euler_ancestral",
        long_side=WIDTH,
    )
    at: dict[tuple[str, int], Counter[str]] = {}
    with counting() as counts:

        def keep(progress: Progress) -> None:
            at[progress.stage, progress.done] = counts.copy()

        editor.edit(frames, params, on_progress=keep)
    return {
        f"phase {phase}, one step": {kind: at[stage, 2][kind] - at[stage, 1][kind] for kind in KINDS}
        for phase, stage in (("A", "anchors"), ("B", "frames"))
    }


def count_decode(checkpoint: Checkpoint) -> dict[str, int]:
    """The counts of the decoder's graph for one picture."""
    backend = EagerBackend(checkpoint, CPU, torch.float32)
    spec = graph_specs(checkpoint)["vae_decoder"]
    sizes = {"frames": 1, "height": HEIGHT // checkpoint.vae_factor, "width": WIDTH // checkpoint.vae_factor}
    inputs = random_inputs(spec, sizes, torch.float32, seed=0)
    engine = backend.engine(spec)
    with counting() as counts:
        engine(inputs)
    backend.close()
    return {kind: counts[kind] for kind in KINDS}


def table(records: Sequence[Record]) -> str:
    """The counts as text."""
    lines = [("", *(kind.replace("_", " ") for kind in KINDS))]
    lines += [(record.name, *(f"{record.counts[kind]:,}" for kind in KINDS)) for record in records]
    widths = [max(len(line[i]) for line in lines) for i in range(len(KINDS) + 1)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _storages(values: Any) -> dict[int, int]:
    """Identity and bytes of every storage among nested values."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return {storage._cdata: storage.nbytes() for storage in storages}


def _indexes_by_mask(name: str, args: Sequence[Any]) -> bool:
    """Whether an index is a mask, whose true entries must be counted first."""
    masks = (torch.bool, torch.uint8)
    return name in ("aten::index", "aten::index_put_") and any(
        isinstance(index, Tensor) and index.dtype in masks for index in args[1]
    )


def _flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Operations of matrix products, convolutions and attention, 2 a multiply-add; 0 for everything else."""
    count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
    if count is not None:
        return int(count(*args, **kwargs, out_val=out))
    if func._schema.name == "aten::_scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if func._schema.name == "fairy::anchor_attention":
        q, k, _, context_k = args[:4]
        keys = sum(t.shape[2] for t in ([] if k is None else [k]) + list(context_k))
        return int(4 * q.numel() * keys)
    return 0


def _configuration(network: Any) -> str:
    """Digest of a network's configuration without names of files and versions: its arithmetic, not its weights."""
    kept = {name: value for name, value in dict(network.config).items() if not name.startswith("_")}
    return canonical_digest(json.loads(json.dumps(kept, default=str)))
