"""Which family a model's folder belongs to, by the pipeline that its `model_index.json` names, and how it is loaded."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairy.export.checkpoint import describe_model, load_checkpoint, model_folder, read_json
from fairy.export.loading import load_network, one_sentence
from fairy.export.lora import Lora
from fairy.export.model import EditModel
from fairy.export.single_file import single_file
from fairy.export.weight_files import check_is_whole
from fairy.kernels.errors import InputError

_LOG = logging.getLogger(__name__)
_KLEIN_4B_BLOCKS = (5, 20)  # of two streams and of one; larger ones have another licence
_told: set[str] = set()


@dataclass(frozen=True, slots=True)
class Family:
    """How folders of one pipeline are loaded.

    Attributes:
        parts: the folders that hold networks.
        others: those that hold what prepares their inputs.
        load: (name, folder, index, type, device) to the model.
        half: the 16 bit that the networks were trained in, which "auto" means on a GPU.
    """

    parts: tuple[str, ...]
    others: tuple[str, ...]
    load: "Callable[[str, Path, dict[str, Any], torch.dtype, Any], EditModel]"
    half: torch.dtype = torch.bfloat16

    @property
    def hub_patterns(self) -> list[str]:
        """The files of a hub repository that are needed."""
        small = [f"{folder}/*.{ending}" for folder in self.others for ending in ("json", "txt", "jinja")]
        networks = [f"{part}/*.{ending}" for part in self.parts for ending in ("json", "safetensors")]
        return ["model_index.json", "fairy.json", "scheduler/*.json", *small, *networks]


def load_edit_model(
    model: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    decoder: str | Path | None = None,
    config: str | Path | None = None,
    loras: Sequence[Lora] = (),
    controls: Sequence[tuple[str | Path, float]] = (),
    depth_estimator: str | Path | None = None,
    ip_adapter: str | Path | None = None,
    before_loading: Callable[[str, Mapping[str, int]], None] = lambda name, sizes: None,
) -> EditModel:
    """Load a model that edits, of whichever family: a folder in diffusers' format, a hub id, or one file.

    Args:
        before_loading: told the model's name and its networks' bytes in `dtype`, of other families than Stable
            Diffusion's; it may raise.
        variant, decoder, config, loras, controls, depth_estimator, ip_adapter: of models of Stable Diffusion's class;
            see `load_checkpoint`.

    Raises:
        InputError: the model is missing, of a family that is not served, or holds no safetensors files; or an option
            does not fit it.
    """
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    if single_file(model) is None and config is None:
        where = {**hub, "revision": revision}
        index = _index(model, where)
        family = family_of(index)
        if family is not None:
            of_others = {"variant": variant, "decoder": decoder, "depth_estimator": depth_estimator}
            of_others |= {"ip_adapter": ip_adapter, "lora": ", ".join(str(lora.path) for lora in loras)}
            of_others |= {"controlnet": ", ".join(str(name) for name, _ in controls)}
            for name, value in of_others.items():
                if value:
                    problem = f"does not fit a model of {index['_class_name']}"
                    raise InputError(problem, name=name, value=str(value), remedy="leave it out")
            folder = model_folder("model", model, family.hub_patterns, where)
            before_loading(str(model), {part: _bytes_in(_files(folder / part), dtype) for part in family.parts})
            return family.load(str(model), folder, index, dtype, device)
    told: dict[str, Any] = {**hub, "revision": revision, "variant": variant, "decoder": decoder, "config": config}
    told |= {"controls": controls, "depth_estimator": depth_estimator, "ip_adapter": ip_adapter}
    return load_checkpoint(model, dtype=dtype, device=device, loras=loras, **told)


def family_of(index: dict[str, Any]) -> Family | None:
    """The family of a `model_index.json`; None = Stable Diffusion's class, or one that nobody here knows."""
    return FAMILIES.get(str(index.get("_class_name")))


def half_precision(model: str | Path, *, revision: str | None = None, **hub: Any) -> torch.dtype:
    """What "auto" means for a model on a GPU: float16, or bfloat16 where its networks need that range.

    Args:
        hub: token, cache_dir, local_files_only.
    """
    if single_file(model) is not None:
        return torch.float16
    family = family_of(_index(model, {**hub, "revision": revision}))
    return torch.float16 if family is None else family.half


def describe_edit_model(folder: Path) -> dict[str, Any]:
    """What a model's folder says of itself, in JSON's types; no weights are read.

    Raises:
        InputError: it lacks something, or is of a kind that cannot be run.
    """
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    family = family_of(index)
    if family is None:
        return describe_model(folder)
    for part in (*family.parts, *family.others):
        if not (folder / part).is_dir():
            raise InputError(f"{folder} has no folder {part}; the model is not complete.")
    for part in family.parts:
        if not _files(folder / part):
            raise InputError(f"The {part} in {folder / part} has no safetensors files; get the model's files anew.")
        check_is_whole(folder / part, part, None)
    common = _common(folder)
    return {
        "path": str(folder),
        "pipeline": index["_class_name"],
        "sees": "picture",
        "bytes": {part: sum(file.stat().st_size for file in _files(folder / part)) for part in family.parts},
        "recommended": common["recommended"],
        "notes": [],
    }


def load_dreamlite(name: str, folder: Path, index: dict[str, Any], dtype: torch.dtype, device: Any) -> EditModel:
    """`DreamLitePipeline` and `DreamLiteMobilePipeline`. Raises InputError."""
    import diffusers
    import transformers

    from fairy.export.bases.dreamlite import DreamLite
    from fairy.export.bases.vision_text import VisionText

    _say_licence("DreamLite's weights are published under CC BY-NC 4.0: for non-commercial use only.")
    beside = folder / "processor"
    with one_sentence(beside):
        tokenizer = transformers.AutoTokenizer.from_pretrained(beside, local_files_only=True)
        pictures = transformers.Qwen2VLImageProcessor.from_pretrained(beside, local_files_only=True)
    encoder = load_network(transformers.Qwen3VLForConditionalGeneration, folder / "text_encoder", dtype)
    return DreamLite(
        name,
        load_network(diffusers.DreamLiteUNetModel, folder / "unet", dtype).to(device),
        load_network(diffusers.AutoencoderTiny, folder / "vae", dtype).to(device),
        VisionText(_waiting(encoder, device), tokenizer, pictures),
        **_common(folder),
        distilled=index["_class_name"] == "DreamLiteMobilePipeline",
        weights={part: _files(folder / part) for part in ("unet", "vae")},
    )


def load_flux2_klein(name: str, folder: Path, index: dict[str, Any], dtype: torch.dtype, device: Any) -> EditModel:
    """`Flux2KleinPipeline` and `Flux2KleinKVPipeline`. Raises InputError."""
    import diffusers
    import transformers

    from fairy.export.bases.flux2 import Flux2Klein

    kv = index["_class_name"] == "Flux2KleinKVPipeline"
    with one_sentence(folder / "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    transformer = load_network(diffusers.Flux2Transformer2DModel, folder / "transformer", dtype).to(device)
    blocks = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    if kv or blocks > _KLEIN_4B_BLOCKS:
        _say_licence("FLUX.2 [klein] 9B's weights are published for non-commercial use only.")
    encoder = load_network(transformers.Qwen3ForCausalLM, folder / "text_encoder", dtype)
    return Flux2Klein(
        name,
        transformer,
        load_network(diffusers.AutoencoderKLFlux2, folder / "vae", dtype).to(device),
        _waiting(encoder, device),
        tokenizer,
        **_common(folder),
        distilled=kv or bool(index.get("is_distilled", False)),
        cached_source=kv,
        weights={part: _files(folder / part) for part in ("transformer", "vae")},
    )


FAMILIES = {
    "DreamLitePipeline": Family(("unet", "vae", "text_encoder"), ("processor",), load_dreamlite),
    "DreamLiteMobilePipeline": Family(("unet", "vae", "text_encoder"), ("processor",), load_dreamlite),
    "Flux2KleinPipeline": Family(("transformer", "vae", "text_encoder"), ("tokenizer",), load_flux2_klein),
    "Flux2KleinKVPipeline": Family(("transformer", "vae", "text_encoder"), ("tokenizer",), load_flux2_klein),
}


def _index(model: str | Path, where: dict[str, Any]) -> dict[str, Any]:
    """The `model_index.json` of a folder or hub id; empty where there is none."""
    file = model_folder("model", model, ["model_index.json"], where) / "model_index.json"
    return read_json(file) if file.is_file() else {}


def _common(folder: Path) -> dict[str, Any]:
    """What every family's folder says in the same way."""
    schedule = folder / "scheduler" / "scheduler_config.json"
    if not schedule.is_file():
        raise InputError(f"{folder} has no scheduler/scheduler_config.json, which says how the model was trained.")
    advice = folder / "fairy.json"
    recommended = read_json(advice) if advice.is_file() else {}
    return {"scheduler_config": read_json(schedule), "recommended": recommended, "folder": folder}


def _waiting(encoder: Any, device: Any) -> Any:
    """A text encoder where it waits for texts: in the machine's own memory, unless weights are not wanted here."""
    return encoder.to("meta") if torch.device(device).type == "meta" else encoder


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _bytes_in(files: Sequence[Path], dtype: torch.dtype) -> int:
    """What the weights of safetensors files take in a type. Raises InputError for a file that is none."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is no whole safetensors file; get it anew.") from error
    return count * dtype.itemsize


def _say_licence(sentence: str) -> None:
    """Once a process."""
    if sentence not in _told:
        _told.add(sentence)
        _LOG.warning("%s", sentence)


__all__ = ["FAMILIES", "Family", "describe_edit_model", "family_of", "half_precision", "load_edit_model"]
