"""A checkpoint in diffusers' directory format, loaded component by component.

Only classes named here are ever made, only safetensors files are read, and no code comes from the checkpoint.
"""

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fairy.export.bases.control import controlled
from fairy.export.bases.stable_diffusion import EDIT_GRAPHS, RARE_GRAPHS, build_graph, graph_specs
from fairy.export.control import FILES as CONTROL_FILES
from fairy.export.control import (
    Control,
    control_number,
    control_part,
    load_control,
    usual_graphs,
    with_control,
)
from fairy.export.graphs import ControlKind, GraphSpec
from fairy.export.ip_adapter import IpAdapter, load_ip_adapter
from fairy.export.ip_adapter import styled as as_styled
from fairy.export.loading import quiet_loading
from fairy.export.lora import Lora, fuse, joined_name
from fairy.export.model import Attend, Picture
from fairy.export.single_file import config_folder, load_from_file, single_file
from fairy.export.weight_files import STEMS, check_is_whole, choose_variant, variants_of
from fairy.kernels.anchor_attention import anchor_attention
from fairy.kernels.errors import InputError, MachineError

_COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
OTHER_FAMILIES = "DreamLitePipeline, DreamLiteMobilePipeline, Flux2KleinPipeline or Flux2KleinKVPipeline"
_TINY = "tiny_decoder"
_TINY_FILES = ["config.json", "diffusion_pytorch_model.safetensors"]
_DEPTH_FILES = ["config.json", "model.safetensors", "preprocessor_config.json"]
_CLASSES = {**_COMPONENTS, _TINY: "AutoencoderTiny"}
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_LONGEST_TEXT = 4096  # tokens; a tokenizer without a limit of its own claims 10³⁰


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The networks of one model and what its directory says about them.

    Attributes:
        name: what the user called it: a directory or a hub id.
        scheduler_config: the checkpoint's own scheduler configuration, as it stands.
        recommended: values of `fairy.json` beside `model_index.json`; empty without that file.
        folder, variant: where the files were read from, and which of them; None where the networks were made in code.
        depth_estimator, depth_processor: the DPT that comes with a depth-conditioned model, in float32; else None.
        tiny_decoder, tiny_decoder_folder: an `AutoencoderTiny` that decodes instead of the autoencoder, approximately,
            and where it was read from; else None.
        loras: files whose changes are in the weights of the UNet and the text encoder.
        single_file: where the weights were read from, if that is one file; `folder` then has the configuration.
        controls: ControlNets and T2I adapters, in the order in which they were named.
        ip_adapter: what makes a picture a prompt; its keys and values are in the UNet.
        depth_estimator_folder: where the DPT was read from, where that is not the model's own folder.
    """

    name: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]
    recommended: dict[str, Any]
    folder: Path | None = None
    variant: str | None = None
    depth_estimator: Any = None
    depth_processor: Any = None
    tiny_decoder: Any = None
    tiny_decoder_folder: Path | None = None
    loras: tuple[Lora, ...] = ()
    single_file: Path | None = None
    controls: tuple[Control, ...] = ()
    depth_estimator_folder: Path | None = None
    ip_adapter: IpAdapter | None = None

    @property
    def decoder(self) -> Any:
        """The autoencoder that makes pictures of latents."""
        return self.vae if self.tiny_decoder is None else self.tiny_decoder

    @property
    def vae_factor(self) -> int:
        """Pixels a latent stands for, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        """What the padded sides of a picture must be a multiple of, in pixels."""
        return int(self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def condition(self) -> Literal["image", "depth"]:
        """What the UNet sees beside the noisy latents: image latents, or one channel of depth."""
        return "depth" if self.unet.config.in_channels == self.vae.config.latent_channels + 1 else "image"

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def usual(self) -> Mapping[str, Any]:
        """What depth-conditioned models are made for."""
        deep = {"num_inference_steps": 50, "sampler": "ddim", "image_guidance_scale": 1.0}
        return deep if self.condition == "depth" else {}

    @property
    def branches(self) -> int:
        return 3

    @property
    def text_sees(self) -> bool:
        return False

    @property
    def takes_controls(self) -> bool:
        return True

    def guided(self, spec: GraphSpec, kinds: Sequence[ControlKind], *, styled: bool) -> GraphSpec:
        """See `fairy.export.model.EditModel`."""
        fitted = controlled(spec, self.unet, kinds)
        adapter = self.ip_adapter if styled else None
        return fitted if adapter is None else as_styled(fitted, self.text_channels, adapter.tokens)

    def text_ids(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Ids filled up or cut to the tokenizer's length; see `fairy.export.model.EditModel`."""
        length = self.tokenizer.model_max_length
        cut = [len(self.tokenizer(text, verbose=False).input_ids) > length for text in texts]
        how = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(list(texts), **how).input_ids, cut

    def encode_text(self, texts: Sequence[str], picture: Picture | None, device: Any) -> tuple[Tensor, list[bool]]:
        """Without a graph: where no engine is asked."""
        ids, cut = self.text_ids(texts)
        return self.text_encoder(ids.to(device))[0], cut

    def as_edited(self, image_latents: Tensor) -> Tensor:
        """See `fairy.export.model.EditModel`."""
        return scaled_latents(self.vae, image_latents)

    def flow_shift(self, latent_size: tuple[int, int], num_inference_steps: int) -> float | None:
        """None: no network of this class was trained by flow matching."""
        return None

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `fairy.export.model.EditModel`."""
        networks = [self.unet, self.vae, self.text_encoder, self.tiny_decoder, *(c.network for c in self.controls)]
        return (parameter for network in networks if network is not None for parameter in network.parameters())

    @property
    def text_channels(self) -> int:
        return int(self.unet.config.cross_attention_dim)

    @property
    def text_tokens(self) -> int:
        return int(self.tokenizer.model_max_length)

    # What follows is `fairy.export.model.Model`.

    @property
    def frames_at_once(self) -> int | None:
        return None

    @property
    def usual_graphs(self) -> tuple[str, ...]:
        return usual_graphs(EDIT_GRAPHS, self.controls, styled=self.ip_adapter is not None)

    @property
    def rare_graphs(self) -> tuple[str, ...]:
        return RARE_GRAPHS

    def graphs(self, *, layers: str = "all") -> dict[str, GraphSpec]:
        """See `fairy.export.bases.stable_diffusion.graph_specs`."""
        return graph_specs(self, layers=layers)

    def build(self, spec: GraphSpec, attend: Attend = anchor_attention) -> nn.Module:
        """See `fairy.export.bases.stable_diffusion.build_graph`."""
        return build_graph(self, spec, attend)

    def network_of(self, spec: GraphSpec) -> str:
        """The part that computes a graph: "unet", "text_encoder", "vae", "tiny_decoder" or "control_N"."""
        if spec.layers:
            return "unet"
        if spec.name == "vae_decoder" and self.tiny_decoder is not None:
            return _TINY
        return control_part(spec.name) or ("vae" if spec.name.startswith("vae_") else spec.name)

    def network(self, part: str) -> nn.Module:
        """A part's network."""
        number = control_number(part)
        module: nn.Module = getattr(self, part) if number is None else self.controls[number].network
        return module

    def with_network(self, part: str, network: nn.Module) -> Self:
        """The checkpoint with another network for a part."""
        number = control_number(part)
        if number is not None:
            return replace(self, controls=with_control(self.controls, number, network))
        changes: dict[str, Any] = {part: network}
        return replace(self, **changes)

    def weight_files(self, part: str) -> list[Path] | None:
        """The safetensors files of a part's network; None where it was made in code."""
        number = control_number(part)
        if number is not None:
            return self.controls[number].weight_files()
        folder = self.tiny_decoder_folder if part == _TINY else self.folder
        if folder is None:
            return None
        if part != _TINY and self.single_file is not None:
            return [self.single_file]
        if part == _TINY:
            return sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
        patterns = [p for p in hub_patterns(self.variant) if p.startswith(f"{part}/")]
        found = {path for pattern in patterns if pattern.endswith(".safetensors") for path in folder.glob(pattern)}
        return sorted(found or (folder / part).glob("*.safetensors"))

    def additions(self, part: str) -> list[tuple[Path, float]]:
        """The files that were added to a part's network, and how strongly."""
        found = [(lora.path, lora.scale) for lora in self.loras] if part in ("unet", "text_encoder") else []
        return found + ([(self.ip_adapter.file, 1.0)] if part == "unet" and self.ip_adapter is not None else [])

    def build_words(self, spec: GraphSpec) -> list[str]:
        """Options of `fairy build` that this very graph needs."""
        words = [] if spec.name in self.usual_graphs else ["--graphs", spec.name]
        words += [] if self.tiny_decoder_folder is None else ["--decoder", str(self.tiny_decoder_folder)]
        words += [] if self.single_file is None else ["--config", str(self.folder)]
        words += [word for lora in self.loras for word in ("--lora", f"{lora.path}:{lora.scale:g}")]
        words += [] if self.ip_adapter is None else ["--ip-adapter", str(self.ip_adapter.file)]
        words += [word for control in self.controls for word in ("--controlnet", control.name)]
        some = len({bool(layer.segments) or layer.emits for layer in spec.layers}) == 2
        return words + (["--layers", "decoder"] if some else [])


def load_checkpoint(
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
) -> Checkpoint:
    """Load an InstructPix2Pix-type or depth-conditioned model: a folder in diffusers' format, a hub id, or one file.

    Other families are loaded by `fairy.export.families.load_edit_model`.

    Args:
        variant: which weights, as in `diffusion_pytorch_model.fp16.safetensors`; None = those without a variant, else
            what there is.
        decoder: a small decoder to use instead of the autoencoder's, approximate: "tiny" = the model's own, or a folder
            or hub id of an `AutoencoderTiny` made for the same latents; None = the autoencoder's.
        config: for a model in one .safetensors file a folder in diffusers' format, whose configuration it has.
        loras: files whose changes are added to the weights.
        controls: folders or hub ids of ControlNets and T2I adapters, and how strongly each is used.
        depth_estimator: a folder or hub id of a DPT that estimates depth; None = the model's own, where it has one.
        ip_adapter: a file of an IP-Adapter's weights, or its folder, with the folder image_encoder beside them.

    Raises:
        InputError: the model is missing, of another kind, or holds no safetensors files.
    """
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    file = single_file(model)
    if file is not None:
        folder = config_folder(file, config)
    else:
        if config is not None:
            raise InputError("is for a model in one file", name="config", value=str(config), remedy="leave it out")
        folder = model_folder("model", model, hub_patterns(variant), {**hub, "revision": revision})
    if file is None and variant is None and not Path(model).expanduser().is_dir() and not _has_weights(folder):
        folder = model_folder("model", model, hub_patterns("fp16"), {**hub, "revision": revision})
    _check_index(folder)
    with quiet_loading():
        parts: dict[str, Any] = {name: _load(folder / name, name, dtype, variant, file) for name in _COMPONENTS}
        if decoder is not None:
            parts["tiny_decoder_folder"] = where = _decoder_folder(folder, decoder, hub)
            parts[_TINY] = _load_tiny_decoder(where, parts["vae"], dtype)
        fuse(parts, loras)
        if ip_adapter is not None:
            parts["ip_adapter"] = load_ip_adapter(ip_adapter, parts["unet"], device)
    for name in {"unet", "vae", "text_encoder", _TINY} & parts.keys():
        parts[name] = parts[name].eval().requires_grad_(False).to(device=device)
    parts |= _load_depth(folder, device)
    if depth_estimator is not None:
        parts |= _load_given_depth(model_folder("depth_estimator", depth_estimator, _DEPTH_FILES, hub), device)
    checkpoint = Checkpoint(
        name=joined_name(str(model), loras),
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        recommended=read_json(folder / "fairy.json") if (folder / "fairy.json").is_file() else {},
        folder=folder,
        variant=variant,
        loras=tuple(loras),
        single_file=file,
        **parts,
    )
    check_is_editor(checkpoint)
    return replace(checkpoint, controls=_load_controls(checkpoint, controls, hub, dtype, device))


def scaled_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents as an autoencoder encodes them, in the scale in which they are edited, in float32."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (latents.float() - shift) * float(vae.config.scaling_factor)


def check_is_editor(checkpoint: Checkpoint) -> None:
    """Refuse, in a sentence, networks that see neither the picture (InstructPix2Pix) nor its depth."""
    unet, vae = checkpoint.unet.config, checkpoint.vae.config
    if unet.in_channels != 2 * vae.latent_channels and checkpoint.condition != "depth":
        raise InputError(
            f"{checkpoint.name} is not an InstructPix2Pix-type editor: its UNet takes {unet.in_channels} channels, "
            f"not the {2 * vae.latent_channels} of noisy and image latents; choose an instruction-editing checkpoint."
        )
    extra = unet.addition_embed_type or unet.class_embed_type or (unet.num_class_embeds and "classes")
    if extra:
        raise InputError(
            f"{checkpoint.name} needs additional embeddings ({extra}), "
            "which are not supported; choose a checkpoint of the Stable Diffusion 1.5 class."
        )


def describe_model(folder: Path) -> dict[str, Any]:
    """What a model's folder says of itself, in JSON's types; no weights are read.

    Raises:
        InputError: it lacks something, or is of a kind that cannot be run.
    """
    _check_index(folder)
    configs = {name: read_json(folder / name / "config.json") for name in STEMS}
    variants = {name: variants_of(folder / name, stem) for name, stem in STEMS.items()}
    for name, found in variants.items():
        if not found:
            raise InputError(f"The {name} in {folder / name} has no safetensors files; get the model's files anew.")
        check_is_whole(folder / name, name, found[0] or None)
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    sees = {2 * configs["vae"]["latent_channels"]: "picture", configs["vae"]["latent_channels"] + 1: "depth"}
    channels = configs["unet"]["in_channels"]
    notes = [] if channels in sees else [f"It is no editor: its UNet takes {channels} channels."]
    return {
        "path": str(folder),
        "pipeline": read_json(folder / "model_index.json").get("_class_name"),
        "sees": sees.get(channels),
        "variants": {name: [variant or "default" for variant in found] for name, found in variants.items()},
        "text_channels": configs["unet"]["cross_attention_dim"],
        "sample_size": configs["unet"].get("sample_size"),
        "prediction_type": schedule.get("prediction_type", "epsilon"),
        "recommended": read_json(folder / "fairy.json") if (folder / "fairy.json").is_file() else {},
        "notes": notes,
    }


def model_folder(what: str, model: str | Path, patterns: list[str], hub: dict[str, Any]) -> Path:
    """Where a model or a decoder lies; what is not a folder is fetched, the files of `patterns` alone."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if isinstance(model, Path) or path.exists() or str(model).count("/") != 1 or str(model).startswith((".", "/", "~")):
        raise InputError(
            f"The {what} {str(model)!r} is neither a folder in diffusers' format nor a hub id such as owner/name."
        )
    return _download(what, str(model), patterns, hub)


def _download(what: str, model: str, patterns: list[str], hub: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=patterns, **hub))
    except Exception as error:  # the hub client raises a dozen kinds; each means the model is not to be had
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise MachineError(f"The disk is full: {model} could not be stored; free some space.") from error
        raise InputError(
            f"The {what} {model!r} could not be fetched from the hub ({type(error).__name__}); check the name and the "
            "network, or give a folder in diffusers' format."
        ) from error


def hub_patterns(variant: str | None = None) -> list[str]:
    """The files of a hub repository that are needed and nothing else: one precision of each component's weights."""
    dot = "" if variant is None else f".{variant}"
    patterns = ["model_index.json", "fairy.json", "scheduler/*.json", "tokenizer/*.json", "tokenizer/*.txt"]
    for part, name in STEMS.items():
        patterns += [f"{part}/config.json", f"{part}/{name}{dot}.safetensors"]
        patterns += [f"{part}/{name}{dot}-*-of-*.safetensors", f"{part}/{name}.safetensors.index{dot}.json"]
    patterns += [f"{_TINY}/{name}" for name in _TINY_FILES]
    patterns += ["depth_estimator/config.json", "depth_estimator/model.safetensors", "feature_extractor/*.json"]
    return patterns


def _has_weights(folder: Path) -> bool:
    return all(variants_of(folder / part, stem) for part, stem in STEMS.items())


def _check_index(folder: Path) -> None:
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise InputError(f"{folder} is not a model in diffusers' format: it has no model_index.json.")
    index = read_json(index_file)
    for name, expected in _COMPONENTS.items():
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if found != expected and not (name == "tokenizer" and found in _TOKENIZERS):
            raise InputError(
                f"{folder} has the {name} {found}, but only {expected} can be run, or a model of {OTHER_FAMILIES}."
            )
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise InputError(f"{folder} has no scheduler/scheduler_config.json, which says how the model was trained.")


def _load(where: Path, name: str, dtype: torch.dtype, variant: str | None, file: Path | None = None) -> Any:
    if not where.is_dir():
        raise InputError(f"{where.parent} has no folder {name}; the model is not complete.")
    try:
        if name == "tokenizer":
            return _load_tokenizer(where)
        if file is not None:
            return load_from_file(file, where.parent, name, _class_of(name), dtype)
        return _load_network(where, name, dtype, variant)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # what the libraries raise for a broken file is not theirs to promise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if file is not None and name != "tokenizer":
            raise InputError(f"{file} does not fit the configuration of the {name} in {where} ({reason}).") from error
        kind = "tokenizer files" if name == "tokenizer" else "a config.json and whole safetensors files"
        raise InputError(f"The {name} in {where} cannot be loaded ({reason}); it must hold {kind}.") from error


def _class_of(name: str) -> Any:
    import diffusers
    import transformers

    return transformers.CLIPTextModel if name == "text_encoder" else getattr(diffusers, _CLASSES[name])


def _load_tokenizer(where: Path) -> Any:
    from transformers import CLIPTokenizer

    if not any((where / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"The tokenizer in {where} has no tokenizer.json or vocab.json; the model is not complete.")
    tokenizer = CLIPTokenizer.from_pretrained(where)
    if not 1 < tokenizer.model_max_length <= _LONGEST_TEXT:
        raise InputError(f"The tokenizer in {where} lacks model_max_length in its tokenizer_config.json.")
    return tokenizer


def _load_network(where: Path, name: str, dtype: torch.dtype, variant: str | None) -> Any:
    import diffusers
    import transformers

    if name in STEMS:
        variant = choose_variant(where, name, variant)
        check_is_whole(where, name, variant)
    options = {"use_safetensors": True, "variant": variant, "output_loading_info": True}
    if name == "text_encoder":
        module, info = transformers.CLIPTextModel.from_pretrained(where, dtype=dtype, **options)
    else:
        cls = getattr(diffusers, _CLASSES[name])
        module, info = cls.from_pretrained(where, torch_dtype=dtype, **options)
    if info["missing_keys"]:  # they would be left at random values
        first = sorted(info["missing_keys"])[0]
        raise InputError(f"The {name} in {where} lacks weights, {first} among them; get the model's files anew.")
    return module


def _decoder_folder(folder: Path, decoder: str | Path, hub: dict[str, Any]) -> Path:
    """Where the small decoder lies that was asked for: in the model's own folder, or where the user says."""
    if decoder != "tiny":
        return model_folder("decoder", decoder, _TINY_FILES, hub)
    if not (folder / _TINY).is_dir():
        raise InputError(
            f"{folder} has no small decoder of its own (the folder {_TINY}); give a folder or hub id of an "
            "AutoencoderTiny made for its latents: for Stable Diffusion 1.5 it is madebyollin/taesd."
        )
    return folder / _TINY


def _load_tiny_decoder(where: Path, vae: Any, dtype: torch.dtype) -> Any:
    """An `AutoencoderTiny`, refused where it cannot stand in for the autoencoder's decoder."""
    found = read_json(where / "config.json").get("_class_name")
    if found != _CLASSES[_TINY]:
        raise InputError(f"The decoder in {where} is {found}, but only {_CLASSES[_TINY]} can be used.")
    tiny = _load(where, _TINY, dtype, None)
    config, factor = tiny.config, 2 ** (len(vae.config.block_out_channels) - 1)
    larger = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
    if (config.latent_channels, larger, config.out_channels) != (vae.config.latent_channels, factor, 3):
        raise InputError(
            f"The decoder in {where} makes pictures of {config.out_channels} channels, {larger} times larger than "
            f"latents of {config.latent_channels}; the model needs 3, {factor} and {vae.config.latent_channels}."
        )
    return tiny


def _load_controls(
    checkpoint: Checkpoint,
    controls: Sequence[tuple[str | Path, float]],
    hub: dict[str, Any],
    dtype: torch.dtype,
    device: str | torch.device,
) -> tuple[Control, ...]:
    """The controls that were asked for, on the device."""
    made = []
    for name, scale in controls:
        folder = model_folder("controlnet", name, CONTROL_FILES, hub)
        with quiet_loading():
            control = load_control(folder, str(name), scale, read_json(folder / "config.json"), checkpoint, dtype)
        made.append(replace(control, network=control.network.eval().requires_grad_(False).to(device=device)))
    return tuple(made)


def _load_given_depth(folder: Path, device: str | torch.device) -> dict[str, Any]:
    """A DPT of the user's own."""
    found = read_json(folder / "config.json").get("model_type")
    if found != "dpt":
        raise InputError(
            f"is of the kind {found}, not dpt", name="depth_estimator", value=str(folder), remedy="choose a DPT"
        )
    return {**_load_dpt(folder, folder, device), "depth_estimator_folder": folder}


def _load_depth(folder: Path, device: str | torch.device) -> dict[str, Any]:
    """The DPT of a depth-conditioned model, where its folder holds one; what makes pictures its inputs is beside it."""
    where, beside = folder / "depth_estimator", folder / "feature_extractor"
    if not where.is_dir() or not beside.is_dir():
        return {}
    return _load_dpt(where, beside, device)


def _load_dpt(where: Path, beside: Path, device: str | torch.device) -> dict[str, Any]:
    from transformers import DPTForDepthEstimation, DPTImageProcessor

    try:
        estimator = DPTForDepthEstimation.from_pretrained(where, dtype=torch.float32, use_safetensors=True)
        processor = DPTImageProcessor.from_pretrained(beside)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"The depth_estimator in {where} cannot be loaded ({reason}); get its files anew.") from error
    return {"depth_estimator": estimator.eval().requires_grad_(False).to(device), "depth_processor": processor}


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises InputError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable JSON file ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object.")
    return value
