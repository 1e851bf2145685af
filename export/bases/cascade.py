"""A generator's networks as graphs: its text encoder, and the `VideoUNet` of every stage, with and without time.

Graphs of a stage's network are called by its folder: `base`, and `base_picture` without the layers over time, which
takes any number of frames, each by itself. Their inputs are those of `VideoUNet.forward` that the network has:

    sample [groups, C, frames, height, width], timestep [groups] float32, text [groups, tokens, C'], fps [groups]
    float32, condition [groups, C'', frames, height, width], noise_level [groups] float32, guidance
    [groups] float32; output [groups, 3, frames, height, width]

Networks see pixels: height and width are a picture's, and `vae_factor` is 1.
"""

from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from fairy.export.bases.stable_diffusion import TextEncoderGraph
from fairy.export.bases.video_unet import VideoUNet
from fairy.export.checkpoint import read_json
from fairy.export.graphs import GraphSpec, TensorSpec, text_encoder_spec
from fairy.export.loading import load_network
from fairy.export.model import Attend
from fairy.kernels.anchor_attention import anchor_attention
from fairy.kernels.errors import InputError
from fairy.kernels.temporal_attention import MOST_FRAMES

TEXT_ENCODER = "text_encoder"
_PICTURE = "_picture"


def graph_of(part: str, *, time: bool) -> str:
    """The name of a network's graph, with or without its layers over time."""
    return part if time else part + _PICTURE


class VideoGraph(nn.Module):
    """A `VideoUNet` as its graph's spec says; what it is not given is what a call without it means."""

    def __init__(self, network: VideoUNet, spec: GraphSpec) -> None:
        super().__init__()
        self.network = network
        self.names = [tensor.name for tensor in spec.inputs]
        self.time = not spec.name.endswith(_PICTURE)

    def forward(
        self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None, *others: Tensor
    ) -> tuple[Tensor]:
        """One call; tensors in the order of the spec."""
        given = dict(zip(self.names, (first, second, third, *others), strict=False))
        none = torch.zeros(first.shape[0], device=first.device)
        made = self.network(
            given.get("sample"),
            given.get("timestep", none),
            given.get("text"),
            fps=given.get("fps", none),
            condition=given.get("condition"),
            noise_level=given.get("noise_level"),
            guidance=given.get("guidance"),
            enable_time=self.time,
        )
        return (made,)


def video_specs(part: str, config: dict[str, Any], tokens: int) -> tuple[GraphSpec, ...]:
    """The graphs of a `VideoUNet` with this configuration."""
    shape = ("frames", "height", "width")
    inputs: list[TensorSpec] = []
    if config["in_channels"]:
        inputs.append(TensorSpec("sample", "float", ("groups", config["in_channels"], *shape)))
        inputs.append(TensorSpec("timestep", "float32", ("groups",)))
    if config["cross_attention_dim"] is not None:
        inputs.append(TensorSpec("text", "float", ("groups", tokens, config["cross_attention_dim"])))
        inputs.append(TensorSpec("fps", "float32", ("groups",)))
    if config["condition_channels"]:
        inputs.append(TensorSpec("condition", "float", ("groups", config["condition_channels"], *shape)))
    if config["noise_levels"]:
        inputs.append(TensorSpec("noise_level", "float32", ("groups",)))
    if config["guidance_embedding"]:
        inputs.append(TensorSpec("guidance", "float32", ("groups",)))
    outputs = (TensorSpec("output", "float", ("groups", config["out_channels"], *shape)),)
    multiple = config["patch_size"] << (len(config["block_out_channels"]) - 1)
    still = GraphSpec(graph_of(part, time=False), tuple(inputs), outputs, multiple=multiple)
    if not config["temporal"]:
        return (still,)
    return replace(still, name=graph_of(part, time=True), frames=(2, MOST_FRAMES)), still


@dataclass(frozen=True, slots=True)
class CascadeModel:
    """The networks of a generator's folder, each loaded when it is first needed; see `fairy.export.model.Model`.

    Attributes:
        name: what the user called it.
        parts: folders of the stages' networks.
        usual_graphs: those that the stages run.
        frames_at_once: the most frames of a stage's window.
        networks: those that were loaded, by part.
    """

    name: str
    folder: Path
    parts: tuple[str, ...]
    usual_graphs: tuple[str, ...]
    frames_at_once: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    networks: dict[str, nn.Module] = field(default_factory=dict)

    vae_factor = 1

    @property
    def size_multiple(self) -> int:
        return max((graph.multiple for graph in self.graphs().values()), default=1)

    @property
    def text_tokens(self) -> int:
        tokens = text_tokens_of(self.folder)
        if tokens is None:
            raise InputError(f"{self.folder} has no tokenizer that says how long texts are; get its files anew.")
        return tokens

    @property
    def recommended(self) -> dict[str, Any]:
        return {}

    @property
    def rare_graphs(self) -> tuple[str, ...]:
        return tuple(name for name in self.graphs() if name not in self.usual_graphs)

    def graphs(self, *, layers: str = "all") -> dict[str, GraphSpec]:
        """Graphs of all networks; `layers` says nothing here."""
        tokens = self.text_tokens
        encoder = read_json(self.folder / TEXT_ENCODER / "config.json")
        specs = [text_encoder_spec(tokens, int(encoder["hidden_size"]))]
        for part in self.parts:
            specs += video_specs(part, config_of(self.folder / part), tokens)
        return {spec.name: spec for spec in specs}

    def build(self, spec: GraphSpec, attend: Attend = anchor_attention) -> nn.Module:
        """The module of a graph; its attention is torch's own, which exporters know, and fairy's over time."""
        network = self.network(self.network_of(spec))
        return TextEncoderGraph(network) if spec.name == TEXT_ENCODER else VideoGraph(cast(VideoUNet, network), spec)

    def network_of(self, spec: GraphSpec) -> str:
        """The folder of a graph's network."""
        return spec.name.removesuffix(_PICTURE)

    def network(self, part: str) -> nn.Module:
        """A part's network, on the device. Raises InputError where it cannot be loaded."""
        if part not in self.networks:
            if part not in (TEXT_ENCODER, *self.parts):
                raise InputError(f"The generator {self.name} has no network {part!r}.")
            from transformers import CLIPTextModel

            cls = CLIPTextModel if part == TEXT_ENCODER else VideoUNet
            network = load_network(cls, self.folder / part, self.dtype)
            if part != TEXT_ENCODER:
                network = network.to(memory_format=torch.channels_last)
            self.networks[part] = network.to(self.device)
        return self.networks[part]

    def with_network(self, part: str, network: nn.Module) -> Self:
        """The model with another network for a part."""
        return replace(self, networks={**self.networks, part: network})

    def keep_only(self, part: str) -> None:
        """Bring a part's network to the device, and the others that were loaded back from it."""
        for name, network in self.networks.items():
            if name != part:
                network.to("cpu")
        self.network(part).to(self.device)

    def weight_files(self, part: str) -> list[Path]:
        """The safetensors files of a part's network."""
        return sorted((self.folder / part).glob("*.safetensors"))

    def additions(self, part: str) -> list[tuple[Path, float]]:
        """None."""
        return []

    def build_words(self, spec: GraphSpec) -> list[str]:
        """Options of `fairy build` that this very graph needs."""
        return [] if spec.name in self.usual_graphs else ["--graphs", spec.name]


def text_tokens_of(folder: Path) -> int | None:
    """Tokens of a caption, as the tokenizer in a generator's folder says; None where it has none that does."""
    told = folder / "tokenizer" / "tokenizer_config.json"
    tokens = read_json(told).get("model_max_length") if told.is_file() else None
    return tokens if isinstance(tokens, int) else None


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration of a `VideoUNet`, with its defaults. Raises InputError where it is none."""
    told = read_json(folder / "config.json")
    if told.get("_class_name") != VideoUNet.__name__:
        raise InputError(
            f"{folder} holds a {told.get('_class_name')}, but a stage's network is a {VideoUNet.__name__}."
        )
    return _DEFAULTS | told


_DEFAULTS = {name: value.default for name, value in signature(VideoUNet.__init__).parameters.items() if name != "self"}


__all__ = ["TEXT_ENCODER", "CascadeModel", "VideoGraph", "config_of", "graph_of", "text_tokens_of", "video_specs"]
