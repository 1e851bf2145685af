"""What a clip will cost, counted before a network runs: calls, operations, weights and memory of every stage.

Networks are made without weights (torch's meta device), so that a description is enough: a cascade.json and a
config.json for each network.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fairy.export.bases.cascade import VideoGraph, config_of, graph_of, text_tokens_of, video_specs
from fairy.export.bases.video_unet import VideoUNet
from fairy.export.graphs import GraphSpec
from fairy.export.shapes import dtype_of, shape_of
from fairy.runtime.generation.cascade import Cascade, ClipShape, Stage
from fairy.runtime.generation.clip_plan import plan_clip
from fairy.runtime.generation.networks import stage_scale, tiles
from fairy.runtime.generation.params import GenerateParams
from fairy.runtime.generation.windows import base_windows

_TOKENS = 77  # of a text, where a description has no tokenizer that says so


@dataclass(frozen=True, slots=True)
class StageCount:
    """One stage's part of a clip.

    Attributes:
        makes: the shape of what it makes, in words.
        parameters: of its network.
        windows: that are computed apart; calls: of the network, in all windows, tiles and steps.
        branches: with and without text in a call, at most.
        tflop: of all calls, as the convolutions and matrix products count.
        memory_bytes: weights and the largest call's inputs and features, roughly.
    """

    name: str
    makes: str
    parameters: int
    windows: int
    calls: int
    branches: int
    tflop: float
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The count as plain values."""
        return asdict(self)


def count_clip(folder: Path, params: GenerateParams, dtype: torch.dtype) -> tuple[StageCount, ...]:
    """What every stage of a clip costs, by a generator's folder or its description alone.

    Raises:
        InputError: the clip is not possible, or the folder describes a network wrongly.
    """
    plan = plan_clip(Cascade.read(folder), params)
    counts = [_count_base(folder, plan.stages[0], plan.shapes[0], dtype)]
    for later, taken, made in zip(plan.later, plan.shapes, plan.shapes[1:], strict=False):
        spans = [later.stage.times * (w.reads[1] - w.reads[0]) for w in later.windows]
        if later.stage.kind == "interpolation":
            pairs = [w for w in later.windows if w.reads[1] - w.reads[0] == 2]  # one frame alone is held
            spans = [2 + sum(place.denominator > 1 for place in w.places) for w in pairs]
            counts.append(_count(folder, later.stage, made, [(n, (made.height, made.width)) for n in spans], dtype))
            continue
        scale = later.stage.scale
        sides = [
            (scale * (rows.reads[1] - rows.reads[0]), scale * (columns.reads[1] - columns.reads[0]))
            for rows in tiles(taken.height)
            for columns in tiles(taken.width)
        ]
        counts.append(_count(folder, later.stage, made, [(n, side) for n in spans for side in sides], dtype))
    return tuple(counts)


def _count_base(folder: Path, stage: Stage, made: ClipShape, dtype: torch.dtype) -> StageCount:
    side = (made.height // stage.factor, made.width // stage.factor)
    return _count(folder, stage, made, [(b - a, side) for a, b in base_windows(stage, made.frames)], dtype)


def _count(
    folder: Path, stage: Stage, made: ClipShape, calls: list[tuple[int, tuple[int, int]]], dtype: torch.dtype
) -> StageCount:
    """A stage whose windows, in tiles, hold so many frames of such sides."""
    config = config_of(folder / stage.network)
    steps = stage.num_inference_steps if stage.denoises else 1
    two = config["cross_attention_dim"] is not None and not config["guidance_embedding"]
    guided = sum(two and stage_scale(stage, i) != 1.0 for i in range(steps))
    samples = steps + guided  # a guided step computes two
    with torch.device("meta"):
        network = VideoUNet(**{name: value for name, value in config.items() if not name.startswith("_")})
    parameters = sum(p.numel() for p in network.parameters())
    flop, most = 0.0, 0
    for size in dict.fromkeys(calls):
        of_one, features = _call(network, config, _graph(folder, stage, config, size[0]), size)
        flop += of_one * samples * calls.count(size)
        most = max(most, features)
    branches = 2 if guided else 1
    memory = dtype.itemsize * (parameters + branches * most)
    return StageCount(
        stage.name, str(made), parameters, len(calls), len(calls) * steps, branches, flop / 1e12, int(memory)
    )


def _call(
    network: VideoUNet, config: dict[str, Any], spec: GraphSpec, size: tuple[int, tuple[int, int]]
) -> tuple[float, int]:
    """Operations of one call of one branch, and how many numbers its largest features hold."""
    frames, (height, width) = size
    height, width = (-(-side // spec.multiple) * spec.multiple for side in (height, width))
    sizes = {"groups": 1, "frames": frames, "height": height, "width": width}
    inputs = [torch.empty(shape_of(t, sizes), dtype=dtype_of(t, torch.float32), device="meta") for t in spec.inputs]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        VideoGraph(network, spec)(*inputs)
    # The first level's features, of its skips and of two of its layers, are the largest there are at a time.
    places = frames * height * width // int(config["patch_size"]) ** 2
    return counter.get_total_flops(), places * config["block_out_channels"][0] * (config["layers_per_block"] + 6)


def _graph(folder: Path, stage: Stage, config: dict[str, Any], frames: int) -> GraphSpec:
    """The graph that a window of so many frames runs."""
    tokens = text_tokens_of(folder) or _TOKENS
    time = stage.enable_time and frames > 1 and config["temporal"]
    specs = {spec.name: spec for spec in video_specs(stage.network, config, tokens)}
    return specs[graph_of(stage.network, time=time)]
