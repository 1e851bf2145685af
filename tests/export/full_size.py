"""Exports and checks a UNet of Stable Diffusion 1.5's full size: `python full_size.py export|check GRAPH FOLDER`.

Weights are random: the public configuration of InstructPix2Pix, 859.5 million parameters. It prints one line of JSON
with seconds and peak resident memory of this process and of the largest one it started (which counts from its fork, so
it is at least what this process held then).
"""

import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel

from fairy.benchmarks.ladder.networks import SD15_UNET
from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec, anchor_layers, frame_layers, self_attention_layers, unet_spec
from fairy.export.onnx.export import export_onnx
from fairy.export.onnx.onnx_files import data_file
from fairy.export.onnx.parity import check_graph

RULES = {"unet_anchor": anchor_layers, "unet_frame": frame_layers}


def full_size(graph: str) -> tuple[Checkpoint, GraphSpec]:
    """The checkpoint, of which only the UNet is real, and the graph's spec."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SD15_UNET)
    unet.eval().requires_grad_(False)
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(128, 256, 512, 512)))
    layers = RULES[graph](self_attention_layers(unet), "all")
    spec = unet_spec(graph, layers, in_channels=8, out_channels=4, text_channels=768)
    return Checkpoint("full size", unet, vae, None, None, {}, {}), spec


def main(what: str, graph: str, folder: Path) -> dict[str, object]:
    """Do one of the two, and say what it took."""
    torch.set_num_threads(1)
    checkpoint, spec = full_size(graph)
    path = folder / "model.onnx"
    row: dict[str, object] = {"parameters": sum(p.numel() for p in checkpoint.unet.parameters())}
    started = time.perf_counter()
    if what == "export":
        export_onnx(checkpoint, spec, path, body="onnxruntime", precision="float32")
        row["bytes"] = path.stat().st_size + data_file(path).stat().st_size
    else:
        parity = check_graph(checkpoint, spec, path, "float32")
        row |= {"max_abs_error": parity.max_abs_error, "relative_error": parity.relative_error, "shapes": parity.shapes}
    row["seconds"] = time.perf_counter() - started
    for name, who in (("peak_gib", resource.RUSAGE_SELF), ("child_peak_gib", resource.RUSAGE_CHILDREN)):
        row[name] = resource.getrusage(who).ru_maxrss / 2**20
    return row


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
