"""Pix2Video's graphs by other backends than eager: ONNX Runtime, and the compiled path's steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.engines.eager import EagerBackend
from fairy.engines.engine import BuildOptions, Engine, EngineSpec, Shapes
from fairy.export.bases.stable_diffusion import RARE_GRAPHS, graph_specs
from fairy.runtime import Editor, EditParams
from fairy.runtime.denoise.guidance import make_guidance
from fairy.runtime.denoise.noise import draw_noise
from fairy.runtime.denoise.sampler import make_schedule
from fairy.runtime.methods import PIX2VIDEO
from fairy.runtime.methods.method import Update
from fairy.runtime.methods.method_graphs import graphs_by_name
from tests.conftest import SCHEDULER, TEXT_CHANNELS
from tests.export.small import small_model
from tests.runtime.methods.units import Units

SHAPES = Shapes((64, 64, 64), (64, 64, 64), (1, 1, 1), anchors=1)  # not looked at: its engines serve any
FRAMES, STEPS, LATENT = 4, 3, (4, 6, 10)


def test_the_methods_graphs_are_those_that_are_built(small_folder: Path, small: Editor) -> None:
    """`fairy build --graphs unet_no_sources,unet_2_sources` makes what an edit asks for."""
    for layers in ("all", "decoder"):
        built = graph_specs(small._networks.checkpoint, layers=layers)
        for name, graph in graphs_by_name(built["unet"], PIX2VIDEO, layers, [1, 5]).items():
            assert name in RARE_GRAPHS
            assert graph == built[name]


def _denoised(engines, specs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(3, 7, TEXT_CHANNELS, generator=generator)
    schedule = make_schedule("euler_ancestral", SCHEDULER, STEPS)
    drawn = [draw_noise(0, k, [0], LATENT, per_frame=False)[0] for k in range(-1, STEPS)]
    images = torch.randn(FRAMES, *LATENT, generator=generator)
    units = Units(
        PIX2VIDEO, schedule, make_guidance(7.5, 1.5), Update(0.0122, 2), text, specs, engines,
        lambda unit: drawn[unit.step + 1],
    )  # fmt: skip
    return units.denoise(drawn[0].expand(FRAMES, *LATENT), images, "wavefront", 2)[0]


@pytest.mark.slow
@pytest.mark.nightly
def test_onnxruntime_gives_what_eager_gives(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from fairy.engines.onnxruntime import OnnxRuntimeBuilder

    cpu, builder = torch.device("cpu"), OnnxRuntimeBuilder()
    checkpoint = small_model(tmp_path_factory.getbasetemp())
    specs = graph_specs(checkpoint, layers="decoder")
    loaded: dict[str, Engine] = {}

    def onnxruntime(name: str, precision: torch.dtype) -> Engine:
        if name not in loaded:
            spec, folder = EngineSpec(specs[name], "onnxruntime", "cpu", "float32"), tmp_path / name
            folder.mkdir()
            builder.build(checkpoint, spec, SHAPES, BuildOptions(), folder, lambda *phase: True)
            loaded[name] = builder.load(spec, folder, cpu)
        return loaded[name]

    eager = EagerBackend(checkpoint, cpu, torch.float32)
    expected = _denoised(lambda name, precision: eager.engine(specs[name], precision), specs)
    found = _denoised(onnxruntime, specs)
    assert set(loaded) == {"unet_no_sources", "unet_2_sources"}
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_the_compiled_paths_steps_serve_it(small_folder: Path, short: np.ndarray) -> None:
    """All exact steps but the compiler itself."""
    params = EditParams("make it red", method="pix2video", num_inference_steps=2)
    with Editor.from_pretrained(small_folder, device="cpu") as eager:
        expected = eager.edit(short, params).frames
    with Editor.from_pretrained(small_folder, device="cpu", backend="compiled", without=["inductor"]) as compiled:
        found = compiled.edit(short, params)
    assert found.report.backend == "compiled"
    assert np.abs(found.frames.astype(int) - expected).max() <= 1
