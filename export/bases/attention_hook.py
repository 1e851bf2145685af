"""How a graph has the attention of a diffusers network computed: by a hook that is told of a call, and keeps none.

Legend of shape suffixes: G groups (guidance branches), F frames, S tokens, C channels.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from fairy.export.graphs import SelfAttention
from fairy.export.model import Attend


@dataclass(slots=True)
class Call:
    """What one call of a UNet graph hands down to its attention layers and gets back from them."""

    attend: Attend
    groups: int
    frames: int
    layers: dict[str, SelfAttention]
    context: dict[str, Tensor]
    emitted: dict[str, Tensor] = field(default_factory=dict)
    style: tuple[Tensor, Tensor] | None = None  # a picture's tokens and their scale, see `export/ip_adapter.py`


class Hook:
    """diffusers' way into an attention layer; it knows the layer's name and keeps nothing. Its call computes the layer.

    Subclasses name what diffusers tells them of, for it looks at their parameters.
    """

    def __init__(self, name: str) -> None:
        self.name = name


class AttentionHook(Hook):
    """Into a layer of a UNet of Stable Diffusion's class, or of a ControlNet."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        fairy_call: Call,
    ) -> Tensor:
        q_GFSC = _frames(attn.to_q(hidden_states), fairy_call)
        if encoder_hidden_states is None:
            out = self._self_attention(attn, q_GFSC, hidden_states, fairy_call)
        else:
            # The text is one per group; every frame of the group reads it by reference.
            k_G1SC = attn.to_k(encoder_hidden_states).unsqueeze(1)
            v_G1SC = attn.to_v(encoder_hidden_states).unsqueeze(1)
            out = fairy_call.attend(q_GFSC, None, None, [k_G1SC], [v_G1SC], heads=attn.heads)
            if fairy_call.style is not None:
                out = add_style(attn, out, *fairy_call.style, partial(fairy_call.attend, heads=attn.heads), q_GFSC)
        projected: Tensor = attn.to_out[0](out.flatten(0, 1))
        return projected

    def _self_attention(self, attn: Any, q_GFSC: Tensor, hidden_states: Tensor, call: Call) -> Tensor:
        layer = call.layers.get(self.name) or SelfAttention(self.name, 0, attn.heads, q_GFSC.shape[-1])
        k_GFSC = _frames(attn.to_k(hidden_states), call)
        v_GFSC = _frames(attn.to_v(hidden_states), call)
        if layer.emits:
            call.emitted.update(zip(layer.emitted, (k_GFSC, v_GFSC), strict=True))
        names = [layer.context(s) for s in range(len(layer.segments))]
        context_k = [call.context[k] for k, _ in names]
        context_v = [call.context[v] for _, v in names]
        if layer.own == "batch":
            context_k.insert(0, _joined(k_GFSC))
            context_v.insert(0, _joined(v_GFSC))
        own_k, own_v = (k_GFSC, v_GFSC) if layer.own == "frame" else (None, None)
        return call.attend(q_GFSC, own_k, own_v, context_k, context_v, heads=attn.heads)


def hook_attention(network: Any, hook: type[Hook] = AttentionHook) -> None:
    """Have the attention layers of a diffusers network computed as its graph's call says."""
    names = [name.removesuffix(".processor") for name in network.attn_processors]
    network.set_attn_processor({f"{name}.processor": hook(name) for name in names})


def plain_call(attend: Attend, groups: int, frames: int) -> Call:
    """A call in which every frame attends to itself alone."""
    return Call(attend, groups, frames, {}, {})


def add_style(attention: nn.Module, out: Tensor, style: Tensor, scale: Tensor, attend: Any, q: Tensor) -> Tensor:
    """What a cross-attention layer read of the text, and of a picture's tokens.

    Args:
        out, q: [groups, frames, tokens, heads·dim].
        style: [groups, tokens, channels]; scale: [groups].
        attend: computes attention to keys and values [groups, 1, tokens, heads·dim].
    """
    k, v = attention.to_k_ip(style).unsqueeze(1), attention.to_v_ip(style).unsqueeze(1)  # type: ignore[operator]
    read: Tensor = attend(q, None, None, [k], [v])
    return out + scale.to(out.dtype)[:, None, None, None] * read


def _frames(t: Tensor, call: Call) -> Tensor:
    split: Tensor = t.unflatten(0, (call.groups, call.frames))
    return split


def _joined(t_GFSC: Tensor) -> Tensor:
    """The tokens of all frames of the batch as one segment that all of them share: a view."""
    return t_GFSC.flatten(1, 2).unsqueeze(1)
