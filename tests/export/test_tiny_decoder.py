"""A small decoder in place of the autoencoder's: the same numbers as diffusers' class, an identity of its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fairy.engines.compiled import CompiledBackend
from fairy.engines.eager import EagerBackend
from fairy.engines.engine import EngineSpec
from fairy.engines.onnxruntime import OnnxRuntimeBuilder
from fairy.engines.store.key import make_key, weights_digest
from fairy.export.bases.stable_diffusion import build_graph, graph_specs
from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import InputError
from tests.conftest import make_tiny

CPU = torch.device("cpu")


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A model that has a small decoder of its own."""
    model = Path(shutil.copytree(checkpoint_folder, tmp_path / "model"))
    make_tiny().save_pretrained(model / "tiny_decoder")
    return model


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 1), (8, 4)])
@pytest.mark.parametrize("changes", [{}, {"scaling_factor": 0.7, "shift_factor": 0.3}])
def test_graph_decodes_as_the_class_does(folder: Path, height: int, width: int, changes: dict[str, float]) -> None:
    tiny = make_tiny(**changes)
    tiny.save_pretrained(folder / "tiny_decoder")
    checkpoint = load_checkpoint(folder, dtype=torch.float64, decoder="tiny")
    latents = torch.randn(2, 4, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    with torch.inference_mode():
        (image,) = build_graph(checkpoint, graph_specs(checkpoint)["vae_decoder"])(latents)
        scaled = latents / tiny.config.scaling_factor + tiny.config.shift_factor
        wanted = tiny.double().decode(scaled).sample
    assert image.shape == (2, 3, 8 * height, 8 * width)
    torch.testing.assert_close(image, wanted, rtol=1e-12, atol=1e-12)


def test_encoding_stays_with_the_autoencoder(folder: Path) -> None:
    full, tiny = (load_checkpoint(folder, dtype=torch.float64, decoder=name) for name in (None, "tiny"))
    image = torch.rand(1, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    first, second = (build_graph(c, graph_specs(c)["vae_encoder"])(image)[0] for c in (full, tiny))
    assert torch.equal(first, second)


def test_found_in_a_folder_of_its_own_too(folder: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.move(folder / "tiny_decoder", tmp_path / "elsewhere"))
    checkpoint = load_checkpoint(folder, dtype=torch.bfloat16, decoder=str(elsewhere))
    assert checkpoint.tiny_decoder_folder == elsewhere
    assert {p.dtype for p in checkpoint.tiny_decoder.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in checkpoint.tiny_decoder.parameters())
    assert not checkpoint.tiny_decoder.training


def _keys(model: Path, decoder: str | None) -> dict[str, str]:
    checkpoint, builder = load_checkpoint(model, decoder=decoder), OnnxRuntimeBuilder()
    graphs = graph_specs(checkpoint)
    return {
        name: make_key(checkpoint, EngineSpec(graphs[name], "onnxruntime", "cpu", "float32"), builder, ()).digest
        for name in ("vae_encoder", "vae_decoder", "unet_frame", "text_encoder")
    }


def test_engine_key_differs_and_no_other_graphs_does(folder: Path) -> None:
    full, tiny = _keys(folder, None), _keys(folder, "tiny")
    assert {name for name in full if full[name] != tiny[name]} == {"vae_decoder"}
    file = folder / "tiny_decoder" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # one bit of the last tensor
    file.write_bytes(data)
    assert {name for name, key in _keys(folder, "tiny").items() if key != tiny[name]} == {"vae_decoder"}
    assert _keys(folder, None) == full


def test_a_configuration_changes_the_key(folder: Path) -> None:
    before = weights_digest(load_checkpoint(folder, decoder="tiny"), "tiny_decoder")
    config = folder / "tiny_decoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    assert weights_digest(load_checkpoint(folder, decoder="tiny"), "tiny_decoder") != before


def test_backends_run_it_in_both_precisions(folder: Path) -> None:
    """Also float32 beside bfloat16, which a job falls back to, and the compiled path, which leaves it as it is."""
    checkpoint = load_checkpoint(folder, decoder="tiny", dtype=torch.bfloat16)
    graph = graph_specs(checkpoint)["vae_decoder"]
    assert checkpoint.network_of(graph) == "tiny_decoder"
    latents = torch.randn(1, 4, 3, 2, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        wanted = make_tiny().to(torch.bfloat16).double().decode(latents.double()).sample
    eager = EagerBackend(checkpoint, CPU, torch.bfloat16)
    compiled = CompiledBackend(checkpoint, CPU, torch.bfloat16, without=("inductor",))
    for backend in (eager, compiled):
        image = backend.engine(graph, torch.float32)({"latents": latents})["image"]
        torch.testing.assert_close(image.double(), wanted, rtol=1e-5, atol=1e-5)
        image = backend.engine(graph)({"latents": latents.bfloat16()})["image"]
        torch.testing.assert_close(image.double(), wanted, rtol=0.1, atol=0.1)
    assert any("vae_decoder ran without the steps" in sentence for sentence in compiled.take_usage().fallbacks)


def _no_tiny(model: Path) -> str:
    shutil.rmtree(model / "tiny_decoder")
    return "tiny"


def _other_class(model: Path) -> str:
    return str(model / "vae")


def _other_latents(model: Path) -> str:
    make_tiny(latent_channels=16).save_pretrained(model / "tiny_decoder")
    return "tiny"


def _other_factor(model: Path) -> str:
    three = {"decoder_block_out_channels": (4,) * 3, "num_decoder_blocks": (1,) * 3}
    make_tiny(**three).save_pretrained(model / "tiny_decoder")
    return "tiny"


def _no_weights(model: Path) -> str:
    (model / "tiny_decoder" / "diffusion_pytorch_model.safetensors").unlink()
    return "tiny"


def _pickle(model: Path) -> str:
    (model / "tiny_decoder" / "diffusion_pytorch_model.safetensors").rename(
        model / "tiny_decoder" / "diffusion_pytorch_model.bin"
    )
    return "tiny"


def _no_config(model: Path) -> str:
    (model / "tiny_decoder" / "config.json").unlink()
    return "tiny"


def _nowhere(model: Path) -> str:
    return str(model / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_tiny, "has no small decoder of its own .* madebyollin/taesd"),
        (_other_class, "is AutoencoderKL, but only AutoencoderTiny can be used"),
        (_other_latents, "latents of 16; the model needs 3, 8 and 4"),
        (_other_factor, "4 times larger"),
        (_no_weights, "cannot be loaded"),
        (_pickle, "whole safetensors files"),
        (_no_config, "config.json is not a readable JSON file"),
        (_nowhere, "neither a folder in diffusers' format nor a hub id"),
    ],
)
def test_what_is_no_small_decoder_is_refused_in_a_sentence(folder: Path, spoil, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_checkpoint(folder, decoder=spoil(folder))
    assert "\n" not in str(caught.value)


def test_a_hub_decoder_that_is_not_at_hand_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The decoder 'nobody/nothing' could not be fetched from the hub"):
        load_checkpoint(folder, decoder="nobody/nothing", cache_dir=tmp_path, local_files_only=True)
