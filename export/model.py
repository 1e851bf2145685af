"""What exporter, engines and store ask of a model, whatever its networks are.

A *family* of models is a class that answers these questions: `fairy.export.checkpoint.Checkpoint` for editors with a
UNet of Stable Diffusion 1.5's class, `fairy.export.bases.cascade.CascadeModel` for the stages of a generator. A new one
implements `Model`; nothing in engines/ knows them by name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn

from fairy.export.graphs import GraphSpec
from fairy.kernels.anchor_attention import anchor_attention


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


__all__ = ["Attend", "Model"]
