"""ControlNets and T2I adapters that a model is loaded with; see `bases/control.py` for what they compute."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairy.export.bases.control import (
    CONTROLLED,
    SUFFIXES,
    AdapterGraph,
    ConditionGraph,
    ControlNetGraph,
    adapter_spec,
    condition_spec,
    controlled,
    controlnet_spec,
)
from fairy.export.graphs import ControlKind, GraphSpec
from fairy.export.loading import load_network
from fairy.export.model import Attend
from fairy.export.weight_files import OF_DIFFUSERS, variants_of
from fairy.kernels.errors import InputError

FILES = ["config.json", f"{OF_DIFFUSERS}*.safetensors", f"{OF_DIFFUSERS}.safetensors.index*.json"]
"""What is fetched of a control's repository."""
_KINDS: dict[str, ControlKind] = {"ControlNetModel": "controlnet", "T2IAdapter": "adapter"}
_GRAPHS = ("condition", "controlnet", "adapter")


@dataclass(frozen=True, slots=True)
class Control:
    """A ControlNet or a T2I adapter.

    Attributes:
        kind: which of the two.
        scale: how much of what it gives is added, where an edit says nothing else.
        folder: where it was read from; None = it was made in code.
    """

    kind: ControlKind
    network: Any
    scale: float = 1.0
    folder: Path | None = None
    name: str = "a control made in code"

    def weight_files(self) -> list[Path] | None:
        """The safetensors files that were read."""
        if self.folder is None:
            return None
        variant = _variant(self.folder)
        dot = "" if not variant else f".{variant}"
        whole = self.folder / f"{OF_DIFFUSERS}{dot}.safetensors"
        return [whole] if whole.is_file() else sorted(self.folder.glob(f"{OF_DIFFUSERS}{dot}-*-of-*.safetensors"))


def load_control(
    folder: Path, name: str, scale: float, config: dict[str, Any], model: Any, dtype: torch.dtype
) -> Control:
    """A control from a folder in diffusers' format, on the CPU.

    Args:
        config: what its config.json says.
        model: the checkpoint that it shall guide.

    Raises:
        InputError: it is of another kind, made for another model, or not whole.
    """
    import diffusers

    kind = _KINDS.get(str(config.get("_class_name")))
    if kind is None:
        found = config.get("_class_name", "unknown")
        raise InputError(
            f"is of the class {found}, not a ControlNetModel or a T2IAdapter",
            name="controlnet",
            value=name,
            remedy="choose one made for Stable Diffusion 1.5",
        )
    if not variants_of(folder, OF_DIFFUSERS):
        raise InputError(
            "has no safetensors files", name="controlnet", value=name, remedy="get its files anew, or convert them"
        )
    cls = diffusers.ControlNetModel if kind == "controlnet" else diffusers.T2IAdapter
    network = load_network(cls, folder, dtype, what="controlnet", variant=_variant(folder) or None)
    made = Control(kind, network, scale, folder, name)
    check_control(made, model)
    return made


def check_control(control: Control, model: Any) -> None:
    """Refuse a control that was made for another UNet. Raises InputError naming what differs."""
    own, unet, latents = control.network.config, model.unet.config, model.vae.config.latent_channels
    if control.kind == "controlnet":
        wanted = {
            "block_out_channels": (tuple(own.block_out_channels), tuple(unet.block_out_channels)),
            "layers_per_block": (own.layers_per_block, unet.layers_per_block),
            "cross_attention_dim": (own.cross_attention_dim, unet.cross_attention_dim),
            "conditioning_channels": (own.conditioning_channels, 3),
            "addition_embed_type": (own.addition_embed_type, None),
            "class_embed_type": (own.class_embed_type, None),
            "global_pool_conditions": (bool(own.global_pool_conditions), False),
            "in_channels": (own.in_channels, unet.in_channels if own.in_channels == unet.in_channels else latents),
            "size of its picture": (2 ** (len(own.conditioning_embedding_out_channels) - 1), model.vae_factor),
        }
    else:
        levels = len(unet.block_out_channels)
        plain = all(kind == "CrossAttnDownBlock2D" for kind in unet.down_block_types[:-1])
        wanted = {
            "adapter_type": (own.adapter_type in ("full_adapter", "light_adapter"), True),
            "channels": (tuple(own.channels), tuple(unet.block_out_channels)),
            "downscale_factor": (own.downscale_factor, model.vae_factor),
            "levels with attention": (plain or levels == 1, True),
            "in_channels": (own.in_channels in (1, 3), True),
        }
    for what, (found, needed) in wanted.items():
        if found != needed:
            raise InputError(
                f"does not fit {model.name}: its {what} is {found}, where {needed} is needed",
                name="controlnet",
                value=control.name,
                remedy="choose one that was made for this class of model",
            )


def control_graphs(model: Any, unets: Sequence[GraphSpec]) -> list[GraphSpec]:
    """The graphs of a model's controls, and those of its UNet that take what they give."""
    multiple = model.size_multiple // model.vae_factor
    made: list[GraphSpec] = []
    for number, control in enumerate(model.controls):
        if control.kind == "adapter":
            made.append(adapter_spec(control.network, model.unet, number, multiple))
        else:
            made.append(condition_spec(control.network, number, multiple))
            made.append(controlnet_spec(control.network, number, multiple, model.text_channels))
    kinds = {control.kind for control in model.controls}
    sets: list[tuple[ControlKind, ...]] = [("controlnet",), ("adapter",), ("controlnet", "adapter")]
    for chosen in sets:
        if set(chosen) <= kinds:
            made += [controlled(spec, model.unet, chosen) for spec in unets if spec.name in CONTROLLED]
    return made


def build_control(model: Any, spec: GraphSpec, attend: Attend) -> nn.Module:
    """The module of a control's graph."""
    what, _, number = spec.name.partition("_")
    network = model.controls[int(number)].network
    if what == "controlnet":
        return ControlNetGraph(network, attend)
    return ConditionGraph(network) if what == "condition" else AdapterGraph(network)


def control_part(graph: str) -> str | None:
    """The part of a model that computes a control's graph, such as control_0; None for other graphs."""
    what, _, number = graph.partition("_")
    return f"control_{number}" if what in _GRAPHS and number.isdecimal() else None


def control_number(part: str) -> int | None:
    """Which of the controls a part is; None for other parts."""
    what, _, number = part.partition("_")
    return int(number) if what == "control" and number.isdecimal() else None


def with_control(controls: tuple[Control, ...], number: int, network: nn.Module) -> tuple[Control, ...]:
    """The controls, one of them with another network."""
    return tuple(replace(c, network=network) if i == number else c for i, c in enumerate(controls))


def usual_graphs(edit_graphs: Sequence[str], controls: Sequence[Control], *, styled: bool) -> tuple[str, ...]:
    """The graphs that an edit uses with all of these controls; `styled`: and with a picture as a prompt."""
    kinds = {control.kind for control in controls}
    ends = "".join(suffix for kind, suffix in SUFFIXES.items() if kind in kinds)
    ends += "_styled" * styled
    own = [name + ends if name in CONTROLLED else name for name in edit_graphs]
    for number, control in enumerate(controls):
        own += [f"adapter_{number}"] if control.kind == "adapter" else [f"condition_{number}", f"controlnet_{number}"]
    return tuple(own)


def _variant(folder: Path) -> str:
    return variants_of(folder, OF_DIFFUSERS)[0]
