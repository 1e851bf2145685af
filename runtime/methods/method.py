"""What an editing method is: a context rule, the layers it applies to, the orders that rule allows, a hook."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fairy.kernels.errors import InputError
from fairy.runtime.plan.order import Order, Unit

if TYPE_CHECKING:
    from torch import Tensor

ContextRule = Callable[[int, tuple[int, ...]], tuple[int, ...]]
"""(frame, anchors) to S(i): the frames whose keys and values frame i reads, in the order of their segments."""


@dataclass(frozen=True, slots=True)
class Update:
    """How strongly a hook pulls frames together, and for how long.

    Attributes:
        weight: of the difference of two predictions of x0, for latents of unit variance.
        steps: the hook acts in this many steps from the first.
    """

    weight: float
    steps: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """One unit after its sampler step, as a hook sees it.

    Attributes:
        unit: frame and step.
        latents: [c, h, w] after the step, in the sampler's own scale, which is
        scale: times that of latents of unit variance; 1 for DDIM.
        original: [c, h, w], the guided prediction of x0 at this step.
        originals: the same of the frames it reads, by frame, at the same step.
    """

    unit: Unit
    latents: "Tensor"
    scale: float
    original: "Tensor"
    originals: Mapping[int, "Tensor"]


AfterStep = Callable[[Stepped, Update], "Tensor"]
"""From a unit after its step to the latents [c, h, w] that its next step begins with."""


@dataclass(frozen=True, slots=True)
class Method:
    """An editing method.

    Attributes:
        name: what `--method` and reports call it.
        sources: the context rule S(i); a frame that reads no other attends to itself.
        own: whether a frame that reads others also attends to its own tokens.
        layers: the self-attention layers the rule applies to, unless the user says otherwise.
        anchors: who says which frames are read by all: "chosen" by the user, the "first" frame, or "none" are.
        orders: those that the rule allows, the default first.
        after_step: called after every step of every frame; None = nothing to do.
    """

    name: str
    sources: ContextRule
    own: bool
    layers: Literal["all", "decoder"]
    anchors: Literal["chosen", "first", "none"]
    orders: tuple[Order, ...]
    after_step: AfterStep | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a rule that its order cannot serve."""
        read = {"chosen": (3, 7), "none": ()}.get(self.anchors)
        if "parallel" not in self.orders:
            if not self.orders or self.anchors != "first":
                raise InputError(
                    f"Method {self.name!r} needs an order, and anchors = 'first' with any but the order 'parallel'."
                )
        elif self.orders != ("parallel",) or self.after_step or not self.own or self.sources(1, (3, 7)) != read:
            raise InputError(
                f"Method {self.name!r} cannot have the order 'parallel', in which frames read themselves and either "
                "the chosen anchors or nobody; choose 'wavefront'."
            )

    def all_sources(self, num_frames: int, anchors: tuple[int, ...]) -> list[tuple[int, ...]]:
        """S(i) of every frame of a video."""
        return [self.sources(i, anchors) for i in range(num_frames)]

    def __str__(self) -> str:
        return self.name
