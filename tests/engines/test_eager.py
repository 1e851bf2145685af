"""The eager backend: named tensors in and out, outputs written where they are wanted, float32 beside 16 bit."""

from pathlib import Path

import pytest
import torch

from fairy.engines.backends import check_backend, make_backend
from fairy.engines.eager import EagerBackend
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import InputError


@pytest.fixture(scope="module")
def backend(checkpoint_folder: Path):
    return make_backend("eager", load_checkpoint(checkpoint_folder), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def graphs(checkpoint_folder: Path):
    return graph_specs(load_checkpoint(checkpoint_folder))


def _inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(3, 2, 8, 8, 8, generator=generator),
        "timestep": torch.tensor([10.0, 500.0]),
        "text": torch.randn(3, 16, 32, generator=generator),
    }


def test_names_are_those_of_the_graph(backend, graphs) -> None:
    for name in ("unet", "unet_anchor"):
        outputs = backend.engine(graphs[name])(_inputs())
        assert list(outputs) == [tensor.name for tensor in graphs[name].outputs]


def test_outputs_are_written_where_they_are_wanted(backend, graphs) -> None:
    engine = backend.engine(graphs["unet_anchor"])
    expected = engine(_inputs())
    targets = {name: torch.full_like(t, float("nan")) for name, t in list(expected.items())[1:4]}
    found = engine(_inputs(), targets)
    for name, target in targets.items():
        assert found[name] is target
        assert torch.equal(target, expected[name])


def test_engines_are_made_once_and_are_stateless(backend, graphs) -> None:
    engine = backend.engine(graphs["unet"])
    assert backend.engine(graphs["unet"]) is engine
    first = engine(_inputs())["output"]
    engine({**_inputs(), "timestep": torch.tensor([3.0, 4.0])})
    assert torch.equal(engine(_inputs())["output"], first)


def test_float32_beside_16_bit(checkpoint_folder: Path, graphs) -> None:
    low = make_backend(
        "eager", load_checkpoint(checkpoint_folder, dtype=torch.bfloat16), torch.device("cpu"), torch.bfloat16
    )
    exact = low.engine(graphs["unet"], torch.float32)
    assert exact.spec.precision == "float32"
    found = exact(_inputs())["output"]
    assert found.dtype == torch.float32
    rounded = low.engine(graphs["unet"])({k: v.bfloat16() if k != "timestep" else v for k, v in _inputs().items()})
    assert rounded["output"].dtype == torch.bfloat16
    assert (found - rounded["output"].float()).abs().max() < 0.2


def test_only_the_network_that_overflowed_is_converted_and_it_is_freed(checkpoint_folder: Path, graphs) -> None:
    checkpoint = load_checkpoint(checkpoint_folder, dtype=torch.bfloat16)
    low = EagerBackend(checkpoint, torch.device("cpu"), torch.bfloat16)
    decoder, unet = low.engine(graphs["vae_decoder"], torch.float32), low.engine(graphs["unet"])
    (converted,) = low._converted.values()
    assert next(converted[1].vae.parameters()).dtype == torch.float32
    assert converted[1].unet is checkpoint.unet
    assert converted[1].text_encoder is checkpoint.text_encoder
    assert low.engine(graphs["vae_decoder"], torch.float32) is decoder
    assert low.engine(graphs["unet"]) is unet  # another network: nothing is freed
    assert low._converted
    low.engine(graphs["vae_encoder"])
    assert not low._converted
    with pytest.raises(InputError, match="was closed"):
        decoder({"latents": torch.zeros(1, 4, 4, 4)})


def test_wrong_inputs_are_named(backend, graphs) -> None:
    engine = backend.engine(graphs["unet"])
    with pytest.raises(InputError, match="text is missing or unknown"):
        engine({k: v for k, v in _inputs().items() if k != "text"})
    with pytest.raises(InputError, match="extra is missing or unknown"):
        engine({**_inputs(), "extra": torch.zeros(1)})


def test_a_closed_engine_refuses(checkpoint_folder: Path, graphs) -> None:
    made = make_backend("eager", load_checkpoint(checkpoint_folder), torch.device("cpu"), torch.float32)
    engine = made.engine(graphs["unet"])
    made.close()
    with pytest.raises(InputError, match="was closed"):
        engine(_inputs())


def test_backends_by_name() -> None:
    check_backend("auto", torch.device("cpu"))
    with pytest.raises(InputError, match="'fastest' is not available; choose auto or one of eager, cuda-graphs, onnx"):
        check_backend("fastest", torch.device("cpu"))
