"""Ranges of an engine's inputs, against tensors that an edit really hands to its graphs."""

from pathlib import Path

import pytest
import torch

from fairy.engines.backends import make_backend
from fairy.engines.engine import Shapes
from fairy.export.bases.stable_diffusion import RARE_GRAPHS, graph_specs
from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import InputError
from fairy.runtime import EditParams
from fairy.runtime.editor import Editor
from tests.runtime.conftest import make_frames


def _inside(shape: tuple[int, ...], lowest: tuple[int, ...], highest: tuple[int, ...]) -> bool:
    return len(shape) == len(lowest) and all(a <= b <= c for a, b, c in zip(lowest, shape, highest, strict=True))


class _Watched:
    """The eager backend, remembering every graph's input shapes."""

    name = "eager"
    steps = frozenset()

    def __init__(self, inner) -> None:
        self.inner, self.seen = inner, []

    def engine(self, graph, precision=None):
        engine = self.inner.engine(graph, precision)

        def call(inputs, out=None):
            self.seen.append((graph, {name: tuple(tensor.shape) for name, tensor in inputs.items()}))
            return engine(inputs, out)

        return call

    def take_usage(self):
        return self.inner.take_usage()

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize(("anchors", "image_guidance_scale"), [(2, 1.5), (1, 1.0), (2, 1.0)])
def test_ranges_hold_what_an_edit_calls(checkpoint_folder: Path, anchors: int, image_guidance_scale: float) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    backend = _Watched(make_backend("eager", checkpoint, torch.device("cpu"), torch.float32))
    shapes = Shapes((64, 64, 128), (64, 128, 192), (1, 3, 4), anchors=2, tokens=16)
    params = EditParams(
        "x", num_inference_steps=1, anchors=anchors, image_guidance_scale=image_guidance_scale, long_side=100
    )
    with Editor(checkpoint, backend, device=torch.device("cpu"), dtype=torch.float32) as editor:
        editor.edit(make_frames(5), params)
    assert {graph.name for graph, _ in backend.seen} == set(graph_specs(checkpoint)) - {"unet", *RARE_GRAPHS}
    for graph, inputs in backend.seen:
        ranges = shapes.ranges(graph, checkpoint.vae_factor)
        assert set(ranges) == set(inputs)
        for name, shape in inputs.items():
            assert _inside(shape, ranges[name][0], ranges[name][2]), (graph.name, name, shape, ranges[name])


def test_the_best_shape_is_the_one_that_was_asked_for(checkpoint_folder: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    graphs = graph_specs(checkpoint)
    shapes = Shapes((64, 128, 256), (64, 192, 256), (1, 5, 9), anchors=3, tokens=16)
    ranges = shapes.ranges(graphs["unet_frame"], 8)
    assert ranges["sample"] == ((1, 1, 8, 8, 8), (3, 5, 8, 16, 24), (3, 9, 8, 32, 32))
    assert ranges["timestep"] == ((1,), (5,), (9,))
    layer = graphs["unet_frame"].layers[0]
    k, _ = layer.context(0)
    assert ranges[k] == tuple((g, 1, n, layer.channels) for g, n in ((1, 64), (3, 3 * 16 * 24), (3, 3 * 32 * 32)))
    assert shapes.ranges(graphs["unet_anchor"], 8)["sample"][1] == (3, 3, 8, 16, 24)
    ranges = shapes.ranges(graphs["unet_2_sources"], 8)
    assert ranges["sample"] == ((1, 1, 8, 8, 8), (3, 5, 8, 16, 24), (3, 9, 8, 32, 32))
    assert ranges[k] == tuple((*gf, n, layer.channels) for gf, n in (((1, 1), 64), ((3, 5), 384), ((3, 9), 1024)))
    assert shapes.ranges(graphs["unet_no_sources"], 8)["sample"][2] == (3, 9, 8, 32, 32)
    assert shapes.ranges(graphs["vae_encoder"], 8)["image"][2] == (1, 3, 256, 256)
    assert shapes.ranges(graphs["text_encoder"], 8)["input_ids"] == ((1, 16), (2, 16), (2, 16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": (64, 32, 128)}, "height = '64:32:128' is not a range"),
        ({"frames": (0, 1, 2)}, "frames = '0:1:2' is not a range"),
        ({"anchors": 0}, "anchors = 0 is not possible"),
    ],
)
def test_impossible_ranges_are_refused(changes: dict, words: str) -> None:
    given = {"height": (64, 64, 64), "width": (64, 64, 64), "frames": (1, 1, 1), "anchors": 1}
    with pytest.raises(InputError, match=words):
        Shapes(**{**given, **changes})


def test_a_size_that_cannot_be_halved_is_refused(checkpoint_folder: Path) -> None:
    graph = graph_specs(load_checkpoint(checkpoint_folder))["unet"]
    with pytest.raises(InputError, match="width = 72 is not possible; it must be a multiple of 64"):
        Shapes((64, 64, 64), (72, 72, 72), (1, 1, 1), anchors=1).ranges(graph, 8)
