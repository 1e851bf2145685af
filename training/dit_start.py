"""First weights of the embedded transformer, with which it gives the source back: then it has only edits to learn.

FLUX.2's class has no way past its blocks. From weights drawn at random the network must first learn to hand the noise
through, without which no step is exact, and to find the source's token at its own place. Here both are set:

    channels      hold
    noise         what comes in: the noisy latents, or the source's
    copy          the source at the same place, written by the second block
    steady        a constant, written by the first block, large enough that norms hardly change the others

One head of either block attends to the source's token at the same place: its queries and keys are constant, and rotary
positions do the rest. What is left is drawn at random.
"""

import math

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

SHARP = 2.5  # norm weight of the rotary pairs that find the place
STEADY = 3.0
QUIET = 0.1  # of gates and scales, of what a class draws at random
SOURCE = 10  # the source's position as a picture
_TIMES = 64
_PAIRS = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1))  # (axis, frequency): picture; rows; columns


@torch.no_grad()
def set_to_copy(model: Flux2Transformer2DModel) -> None:
    """Set the weights in place; the model has two blocks of two streams or more."""
    width, channels = model.inner_dim, model.config.in_channels
    noise, copy = slice(0, channels), slice(channels, 2 * channels)
    steady, one = slice(2 * channels, width - 1), width - 1  # the last channel is what is constant after a norm
    constant = _constant_of_time(model)
    for change in (model.double_stream_modulation_img, model.single_stream_modulation):
        change.linear.weight.mul_(QUIET)
    shift, gate = 0, 2 * width  # of attention, in a modulation
    rows = model.double_stream_modulation_img.linear.weight
    rows[shift + one] = constant
    rows[gate + channels : gate + width - 1] = constant
    model.x_embedder.weight.zero_()
    model.x_embedder.weight[noise] = torch.eye(channels)
    signs = torch.ones(width - 1 - 2 * channels)
    signs[1::2] = -1
    for number, block in enumerate(model.transformer_blocks[:2]):
        attn, dim = block.attn, model.config.attention_head_dim
        head = slice(0, dim)
        _look_at_the_source(model, attn, one)
        attn.to_v.weight[head] = 0.0
        attn.to_out[0].weight[: width - 1] = 0.0
        if number == 0:
            attn.to_v.weight[head, one] = 1.0
            attn.to_out[0].weight[steady, 0] = STEADY * signs
        else:
            attn.to_v.weight[head, noise] = torch.eye(channels)[:dim] * _deviation(width, channels)
            attn.to_out[0].weight[copy, head] = torch.eye(channels)[:, :dim]
    model.norm_out.linear.weight.mul_(QUIET)
    model.proj_out.weight.zero_()
    model.proj_out.weight[:, noise] = torch.eye(channels) * _deviation(width, channels, copies=2)
    model.proj_out.weight[:, copy] = -torch.eye(channels) * _deviation(width, channels, copies=2)


def _deviation(width: int, channels: int, copies: int = 1) -> float:
    """Of a token's channels, where so many pictures of unit variance stand in it beside the steady channels."""
    return math.sqrt((copies * channels + STEADY**2 * (width - 1 - 2 * channels)) / width)


def _constant_of_time(model: Flux2Transformer2DModel) -> Tensor:
    """A row of weights with which a layer that reads the time gives 1 at all times."""
    times = torch.linspace(0.2, 1.0, _TIMES) * 1000
    read = nn.functional.silu(model.time_guidance_embed(times, None))
    ridge = 1e-6 * read.square().sum() * torch.eye(_TIMES)
    return read.T @ torch.linalg.solve(read @ read.T + ridge, torch.ones(_TIMES))


def _look_at_the_source(model: Flux2Transformer2DModel, attn: nn.Module, one: int) -> None:
    """The first head's queries and keys: constant, the keys turned back by the source's position."""
    dims, theta = model.config.axes_dims_rope, model.config.rope_theta
    head = sum(dims)
    q, k = torch.zeros(head), torch.zeros(head)
    for axis, pair in _PAIRS:
        at = sum(dims[:axis]) + 2 * pair
        turn = SOURCE * theta ** (-2 * pair / dims[axis]) if axis == 0 else 0.0
        q[at] = 1.0
        k[at], k[at + 1] = math.cos(turn), -math.sin(turn)
        for norm in (attn.norm_q, attn.norm_k):
            norm.weight[at : at + 2] = SHARP
    for layer, wanted in ((attn.to_q, q), (attn.to_k, k)):
        layer.weight[:head] = 0.0
        layer.weight[:head, one] = wanted
