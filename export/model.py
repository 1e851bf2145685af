"""What exporter, engines and store ask of a model, whatever its networks are.

A *family* of models is a class that answers these questions; nothing in engines/ or runtime/ knows one by name:

    fairy.export.checkpoint.Checkpoint        editors with a UNet of Stable Diffusion 1.5's class
    fairy.export.bases.dreamlite.DreamLite    DreamLite: a small UNet that sees the source beside the target
    fairy.export.bases.flux2.Flux2Klein       FLUX.2 [klein]: a transformer over text, target and source
    fairy.export.bases.cascade.CascadeModel   the stages of a generator

A new family of editors implements `EditModel`, and `fairy.export.families` tells its folders by their
`model_index.json`; a new family of anything else implements `Model`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fairy.export.graphs import ControlKind, GraphSpec
from fairy.kernels.anchor_attention import anchor_attention

if TYPE_CHECKING:
    from fairy.export.control import Control
    from fairy.export.ip_adapter import IpAdapter
    from fairy.export.lora import Lora


class Attend(Protocol):
    """What computes attention; shapes as in `fairy.kernels.anchor_attention`, which is the one that computes."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        context_k: Sequence[Tensor] = (),
        context_v: Sequence[Tensor] = (),
        *,
        heads: int,
    ) -> Tensor: ...


class Model(Protocol):
    """Networks, and the graphs that they compute. Networks are called by the name of their part of the model."""

    @property
    def name(self) -> str:
        """What the user called it: a directory or a hub id."""
        ...

    @property
    def vae_factor(self) -> int:
        """Pixels a latent stands for along one side; 1 where the networks see pixels."""
        ...

    @property
    def size_multiple(self) -> int:
        """What the sides of a picture must be a multiple of, in pixels, for all graphs."""
        ...

    @property
    def text_tokens(self) -> int:
        """Tokens of a text."""
        ...

    @property
    def recommended(self) -> Mapping[str, Any]:
        """Parameters of an edit that the model asks for; engines are built for them where nothing else is said."""
        ...

    @property
    def frames_at_once(self) -> int | None:
        """The most frames of a call; None = what suits the anchors of an edit."""
        ...

    @property
    def usual_graphs(self) -> tuple[str, ...]:
        """Those that a job needs, which are built where no others are named."""
        ...

    @property
    def rare_graphs(self) -> tuple[str, ...]:
        """Those that are exported and built only where they are asked for by name."""
        ...

    def graphs(self, *, layers: str = "all") -> dict[str, GraphSpec]:
        """All graphs by name; `layers`: of editors, which self-attention layers see the anchors."""
        ...

    def build(self, spec: GraphSpec, attend: Attend = anchor_attention) -> nn.Module:
        """The module that computes a graph; its weights are the model's, not copies. Raises InputError."""
        ...

    def network_of(self, spec: GraphSpec) -> str:
        """The part whose network computes a graph."""
        ...

    def network(self, part: str) -> nn.Module:
        """The network of a part."""
        ...

    def with_network(self, part: str, network: nn.Module) -> Self:
        """The model with another network for a part; the others are shared."""
        ...

    def weight_files(self, part: str) -> list[Path] | None:
        """The safetensors files of a part's network; None where it was made in code."""
        ...

    def additions(self, part: str) -> list[tuple[Path, float]]:
        """Files of further weights that were added to a part's network, and how strongly."""
        ...

    def build_words(self, spec: GraphSpec) -> list[str]:
        """Options that `fairy build` needs to build this very graph, beside model, backend and sizes."""
        ...


class EditModel(Model, Protocol):
    """What an edit asks of a model besides.

    Its graphs are `vae_encoder`, `vae_decoder` and the denoising network's: `unet` (frames alone), `unet_anchor` (phase
    A) and `unet_frame` (phase B), whichever kind of network that is. All take `sample` [groups, frames, channels, h,
    w], the noisy latents and then what the network sees beside them, `timestep` [frames] and `text`, and give `output`
    [groups, frames, c, h, w]. Where there is a graph `unet_source`, it takes what the network sees beside the latents,
    `source` [groups, frames, c, h, w], once for all steps, and gives what those three take besides. The text is
    computed by a graph `text_encoder` of token ids where there is one, else by `encode_text`.
    """

    @property
    def folder(self) -> Path | None:
        """Where the files were read from; None where the networks were made in code."""
        ...

    @property
    def variant(self) -> str | None:
        """Which of the folder's weights were read."""
        ...

    @property
    def single_file(self) -> Path | None:
        """Where the weights were read from, if that is one file."""
        ...

    @property
    def loras(self) -> "tuple[Lora, ...]":
        """Files whose changes are in the weights."""
        ...

    @property
    def tiny_decoder_folder(self) -> Path | None:
        """Where a small decoder was read from that decodes instead of the autoencoder."""
        ...

    @property
    def takes_controls(self) -> bool:
        """Whether ControlNets, T2I adapters and IP-Adapters are made for models of this family."""
        ...

    @property
    def controls(self) -> "tuple[Control, ...]":
        """ControlNets and T2I adapters that it was loaded with."""
        ...

    @property
    def ip_adapter(self) -> "IpAdapter | None":
        """What makes a picture a prompt."""
        ...

    @property
    def depth_estimator(self) -> Any:
        """A DPT that estimates the depth of pictures, or None."""
        ...

    @property
    def depth_estimator_folder(self) -> Path | None:
        """Where that was read from, where it is not the model's own."""
        ...

    def guided(self, spec: GraphSpec, kinds: Sequence[ControlKind], *, styled: bool) -> GraphSpec:
        """The denoising network's graph with inputs for these kinds of control and, `styled`, a picture's tokens."""
        ...

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The model's own scheduler configuration."""
        ...

    @property
    def condition(self) -> Literal["image", "depth"]:
        """What the network sees beside the noisy latents."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of one frame's latents."""
        ...

    @property
    def usual(self) -> Mapping[str, Any]:
        """Parameters of an edit that the family is made for; `recommended` and the user have precedence."""
        ...

    @property
    def branches(self) -> int:
        """Guidance branches of the network: 3; 2 = it always sees the picture; 1 = guidance was distilled away."""
        ...

    @property
    def text_sees(self) -> bool:
        """Whether the text is encoded together with a picture."""
        ...

    def text_ids(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Token ids [texts, tokens] for the graph `text_encoder`, and of which texts the end was not used."""
        ...

    def encode_text(self, texts: Sequence[str], picture: "Picture | None", device: Any) -> tuple[Tensor, list[bool]]:
        """Features of texts [texts, …, channels], all of one length, zeros where a text is shorter, and of which texts
        the end was not used. `picture`: uint8 [H, W, 3], where the text is encoded with one."""
        ...

    def as_edited(self, image_latents: Tensor) -> Tensor:
        """What the encoder's graph gives, in the scale in which latents are edited, in float32."""
        ...

    def flow_shift(self, latent_size: tuple[int, int], num_inference_steps: int) -> float | None:
        """How far the schedule of a network trained by flow matching is shifted; None = as its configuration says."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of all networks that a job keeps in its device's memory."""
        ...


class WithoutControls:
    """What families answer for which no ControlNet, T2I adapter, IP-Adapter or DPT is made; see `EditModel`."""

    __slots__ = ()

    @property
    def takes_controls(self) -> bool:
        return False

    @property
    def controls(self) -> "tuple[Control, ...]":
        return ()

    @property
    def ip_adapter(self) -> "IpAdapter | None":
        return None

    @property
    def depth_estimator(self) -> Any:
        return None

    @property
    def depth_estimator_folder(self) -> Path | None:
        return None

    def guided(self, spec: GraphSpec, kinds: Sequence[ControlKind], *, styled: bool) -> GraphSpec:
        """The graph as it is."""
        assert not kinds
        assert not styled
        return spec


Picture = npt.NDArray[np.uint8]


__all__ = ["Attend", "EditModel", "Model", "Picture", "WithoutControls"]
