"""What every test may use: random checkpoints of Stable Diffusion 1.5's layout, small enough for a CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def _make_importable(name: str) -> None:
    """Load a plain folder of the checkout as a package without putting the checkout on sys.path."""
    spec = importlib.util.spec_from_file_location(
        name, ROOT / name / "__init__.py", submodule_search_locations=[str(ROOT / name)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for _folder in ("training", "examples", "benchmarks"):
    if (ROOT / _folder / "__init__.py").exists() and _folder not in sys.modules:
        _make_importable(_folder)

torch.set_num_threads(1)

CHANNELS = (32, 64, 128, 128)
TEXT_CHANNELS = 32
SCHEDULER = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}


def make_unet(seed: int = 0, **changes: object) -> torch.nn.Module:
    """A random UNet with Stable Diffusion 1.5's block layout and 8 input channels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    config = {
        "sample_size": 16,
        "in_channels": 8,
        "out_channels": 4,
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT_CHANNELS,
        "block_out_channels": CHANNELS,
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        **changes,
    }
    return UNet2DConditionModel(**config).eval().requires_grad_(False)


def make_vae(seed: int = 1) -> torch.nn.Module:
    """A random autoencoder, 8 times smaller, 4 channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    blocks = 4
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )
    return vae.eval().requires_grad_(False)


def make_tiny(seed: int = 5, **changes: object) -> torch.nn.Module:
    """A random small autoencoder of the class `AutoencoderTiny` for the same latents."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    config = {
        "encoder_block_out_channels": (1,) * 4,
        "num_encoder_blocks": (0,) * 4,
        "decoder_block_out_channels": (5,) * 4,
        "num_decoder_blocks": (1, 2, 0, 1),
        **changes,
    }
    return AutoencoderTiny(**config).eval()


def make_controlnet(seed: int = 7, **changes: object) -> torch.nn.Module:
    """A random ControlNet for `make_unet`'s; what it gives is not zero, as that of an untrained one is."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    config = {
        "block_out_channels": CHANNELS,
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT_CHANNELS,
        "conditioning_embedding_out_channels": (4, 4, 8, 8),
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        **changes,
    }
    network = ControlNetModel(**config).eval().requires_grad_(False)
    ends = [network.controlnet_cond_embedding.conv_out, network.controlnet_mid_block, *network.controlnet_down_blocks]
    for layer in ends:
        torch.nn.init.normal_(layer.weight, std=0.2)
        torch.nn.init.normal_(layer.bias, std=0.2)
    return network


def make_adapter(seed: int = 8, **changes: object) -> torch.nn.Module:
    """A random T2I adapter for `make_unet`'s."""
    from diffusers import T2IAdapter

    torch.manual_seed(seed)
    config = {"channels": [*CHANNELS], "num_res_blocks": 1, "downscale_factor": 8, "adapter_type": "full_adapter"}
    return T2IAdapter(**{**config, **changes}).eval().requires_grad_(False)


def write_tokenizer(folder: Path, length: int = 16) -> None:
    """A CLIP tokenizer that spells every word out: byte-level alphabet, no merges."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    names = [*letters, *[letter + "</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=length)
    tokenizer.save_pretrained(folder)


def write_checkpoint(folder: Path, *, scheduler: dict | None = None, recommended: dict | None = None) -> Path:
    """A whole random model in diffusers' directory format."""
    from transformers import CLIPTextConfig, CLIPTextModel

    make_unet().save_pretrained(folder / "unet")
    make_vae().save_pretrained(folder / "vae")
    write_tokenizer(folder / "tokenizer")
    torch.manual_seed(2)
    text = CLIPTextConfig(
        vocab_size=190,
        hidden_size=TEXT_CHANNELS,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=188,
        eos_token_id=189,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler or SCHEDULER))
    index = {
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", (scheduler or SCHEDULER)["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    if recommended is not None:
        (folder / "fairy.json").write_text(json.dumps(recommended))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_store_of_the_user(tmp_path_factory: pytest.TempPathFactory):
    """Keep engines that the user built out of tests that do not name a store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIRY_STORE", str(tmp_path_factory.mktemp("store") / "empty"))
        yield


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with Stable Diffusion 1.5's layout."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "random")


@pytest.fixture(scope="session")
def editor(checkpoint_folder: Path):
    """An Editor over the random model, in float32 on the CPU."""
    from fairy.runtime import Editor

    with Editor.from_pretrained(checkpoint_folder, device="cpu") as made:
        yield made


# Files whose tests share what takes long to make: one of pytest-xdist's processes takes them all.
TOGETHER = {"tests/engines/test_onnxruntime.py": "small export", "tests/export/test_onnx.py": "small export"}
# Those that take longest are begun first, so that no process is left with one of them at the end.
FIRST = (
    "tests/engines/test_onnxruntime.py",
    "tests/export/test_onnx.py",
    "tests/runtime/workers/test_workers.py",
    "tests/runtime/test_journal.py",
    "tests/kernels/test_interpreter.py",
    "tests/runtime/test_editor.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {ROOT / name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))  # others stay as they are


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A file's tests stay in one process, and so do those of files that share something."""
    from xdist.scheduler import LoadFileScheduling

    class ByRoom(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    config.option.loadscopereorder = False  # in the order above, not by the number of tests
    return ByRoom(config, log)
