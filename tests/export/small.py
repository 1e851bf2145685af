"""A checkpoint so small that its graphs export in seconds, and its export: both made once.

`TOGETHER` in tests/conftest.py keeps their users in one process.
"""

from functools import cache
from pathlib import Path

from fairy.export.bases.stable_diffusion import RARE_GRAPHS, graph_specs
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.onnx.export import ExportReport, export_model
from tests.conftest import make_unet, write_checkpoint


@cache
def small_model(base: Path) -> Checkpoint:
    """A random model as `write_checkpoint` makes it, but for a UNet of two levels with three transformer blocks."""
    return _model(
        base / "small", (16, 32), ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    )


@cache
def tiny_model(base: Path) -> Checkpoint:
    """The same with a UNet of one transformer block, for what takes long by the block; its layers are not all kinds."""
    return _model(base / "tiny", (16,), ("CrossAttnDownBlock2D",), ("UpBlock2D",))


def _model(folder: Path, channels: tuple[int, ...], down: tuple[str, ...], up: tuple[str, ...]) -> Checkpoint:
    unet = make_unet(
        seed=3,
        layers_per_block=1,
        block_out_channels=channels,
        attention_head_dim=2,
        down_block_types=down,
        up_block_types=up,
        mid_block_type=None,
    )
    unet.save_pretrained(write_checkpoint(folder) / "unet")
    return load_checkpoint(folder)


@cache
def small_export(base: Path) -> tuple[ExportReport, list[tuple[str, int, int]]]:
    """The graphs of an edit, for onnxruntime in float32, checked; and the phases that were told."""
    checkpoint = small_model(base)
    told: list[tuple[str, int, int]] = []

    def tell(phase: str, done: int, total: int) -> bool:
        told.append((phase, done, total))
        return True

    graphs = [name for name in graph_specs(checkpoint) if name not in ("unet", *RARE_GRAPHS)]
    return export_model(checkpoint, base / "small-export", graphs=graphs, on_progress=tell), told
