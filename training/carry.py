"""A way for the image's latents straight through the UNet, made in weights that hardly anything else needs.

An edit leaves most of a picture as it is. A UNet whose first and last layers were made for 4 latent channels takes
very long to learn to copy 16. So its first layer writes them into the directions of its output that vary least. From
there the last block's shortcut takes them past its residual branches to the last layer, in the groups of features
that it misses least, and the last layer is fitted anew. All else keeps its weights, the layout does not change.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

from training.editor import TRAIN_STEPS, TextEditor, alphas_cumprod

SLIGHT = 0.3  # standard deviation of the carried latents in the first layer's output, small beside its other ones
OFFSET = 4.0  # beside which a latent hardly changes a group's mean and spread
GAIN, STRAIGHT = 3.0, 4.0  # before the last activation: how far latents spread, and about where it is straight
RIDGE = 3e-3
DEAD = 0.1  # latents that vary less, relative to the mean, are not carried
BATCH = 12


@dataclass(frozen=True, slots=True)
class Sample:
    """Edits at the last time: target [N, C, h, w] of unit variance, image [N, C, h, w], tokens [N, L]."""

    target: torch.Tensor
    image: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """At every latent of a sample: the first layer's output, the last layer's 3x3 input, and what v should be."""

    first_PF: torch.Tensor
    last_PK: torch.Tensor
    wanted_PC: torch.Tensor


@torch.no_grad()
def carry_details(model: TextEditor, sample: Sample) -> None:
    """Makes the way for the image's latents in ``model``, as measured on ``sample``."""
    unet = model.unet
    image_PC = _places(sample.image)
    spread_C = image_PC.std(dim=0)
    group = unet.config["block_out_channels"][0] // unet.conv_norm_out.num_groups
    carried = [c for c in range(len(spread_C)) if spread_C[c] > DEAD * spread_C.mean()]
    carried = carried[: unet.conv_norm_out.num_channels // group // 2 * group]
    unit_PC = (image_PC - image_PC.mean(dim=0)) / spread_C
    _write_first(unet.conv_in, look(model, sample).first_PF, image_PC, carried)
    seen = look(model, sample)
    read_FC, read_bias_C = ridge(seen.first_PF, unit_PC, 1e-8)
    groups = missed_least(seen, group, -(-len(carried) // group))
    channels = [group * g + c for g in groups for c in range(group)][: len(carried)]
    _pass_last(unet, channels, read_FC[:, carried].T, read_bias_C[carried])
    seen = look(model, sample)
    weight_KC, bias_C = ridge(seen.last_PK, seen.wanted_PC, RIDGE)
    unet.conv_out.weight.copy_(weight_KC.T.reshape(unet.conv_out.weight.shape))
    _bias(unet.conv_out).copy_(bias_C)


@torch.no_grad()
def look(model: TextEditor, sample: Sample) -> Seen:
    """What goes in at the last layer and out at the first one, where the noisy latent is noise alone."""
    first, last, alpha = [], [], alphas_cumprod()[-1]
    noise = torch.randn(sample.target.shape, generator=torch.Generator().manual_seed(0))
    hooks = (
        model.unet.conv_in.register_forward_hook(lambda _layer, _inputs, output: first.append(output)),
        model.unet.conv_out.register_forward_pre_hook(lambda _layer, inputs: last.append(inputs[0])),
    )
    for start in range(0, len(noise), BATCH):
        part = slice(start, start + BATCH)
        times = torch.full((len(noise[part]),), TRAIN_STEPS - 1)
        model(noise[part], sample.image[part], times, sample.tokens[part])
    for hook in hooks:
        hook.remove()
    windows = F.unfold(torch.cat(last), 3, padding=1).transpose(1, 2).flatten(0, 1)
    wanted = alpha.sqrt() * noise - (1 - alpha).sqrt() * sample.target
    return Seen(_places(torch.cat(first)), windows, _places(wanted))


def _places(x_BCHW: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] to [B h w, C]."""
    return x_BCHW.movedim(1, -1).flatten(0, -2)


def ridge(x_PK: torch.Tensor, y_PC: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [K, C] and bias [C] of least squares whose weights cost ``penalty`` a place."""
    x_mean, y_mean = x_PK.mean(dim=0), y_PC.mean(dim=0)
    centred = x_PK - x_mean
    square = centred.T @ centred + penalty * len(centred) * torch.eye(centred.shape[1])
    weight = torch.linalg.solve(square, centred.T @ (y_PC - y_mean))
    return weight, y_mean - x_mean @ weight


def missed_least(seen: Seen, group: int, count: int) -> list[int]:
    """The groups of last features without which v can still be told best, found one after the other."""
    centred = (seen.last_PK - seen.last_PK.mean(dim=0)).double()
    square_KK = centred.T @ centred + RIDGE * len(centred) * torch.eye(centred.shape[1], dtype=torch.float64)
    product_KC = centred.T @ (seen.wanted_PC - seen.wanted_PC.mean(dim=0)).double()
    width = 9 * group
    left, lost = list(range(centred.shape[1] // width)), []

    def explained(groups: list[int]) -> float:
        columns = torch.cat([torch.arange(width) + width * g for g in groups])
        solved = torch.linalg.solve(square_KK[columns][:, columns], product_KC[columns])
        return float((product_KC[columns] * solved).sum())

    for _ in range(count):
        lost.append(max(left, key=lambda g: explained([other for other in left if other != g])))
        left.remove(lost[-1])
    return lost


def _write_first(layer: nn.Conv2d, first_PF: torch.Tensor, image_PC: torch.Tensor, carried: list[int]) -> None:
    """The carried latents take the place of what varies least in the layer's output; that keeps its mean."""
    mean_F = first_PF.mean(dim=0)
    _, directions_FF = torch.linalg.eigh(torch.cov((first_PF - mean_F).T))
    free_FN = directions_FF[:, : len(carried)]
    rest_FF = torch.eye(len(mean_F)) - free_FN @ free_FN.T
    bias = _bias(layer)
    layer.weight.copy_(torch.einsum("ab,bikl->aikl", rest_FF, layer.weight))
    bias.copy_(rest_FF @ bias + free_FN @ (free_FN.T @ mean_F))
    half = layer.in_channels // 2
    for direction_F, channel in zip(free_FN.T, carried, strict=True):
        scale = SLIGHT / image_PC[:, channel].std()
        layer.weight[:, half + channel, 1, 1] += scale * direction_F
        bias -= scale * image_PC[:, channel].mean() * direction_F


def _pass_last(unet: UNet2DConditionModel, channels: list[int], read_NF: torch.Tensor, bias_N: torch.Tensor) -> None:
    """The last block's shortcut reads the latents; its branches neither read nor write them any more.

    Of each three channels of a group one lies high and one low, so that the group's norm is nearly constant.
    """
    resnet, attention = unet.up_blocks[-1].resnets[-1], unet.up_blocks[-1].attentions[-1]
    group = unet.conv_norm_out.num_channels // unet.conv_norm_out.num_groups
    offsets = [(OFFSET, -OFFSET, 0.0)[index % group % 3] for index in range(len(channels))]
    group_spread = OFFSET * (2 / 3) ** 0.5
    shortcut, skip = resnet.conv_shortcut, read_NF.shape[1]
    for row_F, bias, channel, offset in zip(read_NF, bias_N, channels, offsets, strict=True):
        shortcut.weight[channel] = 0
        shortcut.weight[channel, -skip:, 0, 0] = row_F
        shortcut.bias[channel] = bias + offset
        for layer in (resnet.conv2, attention.proj_out):
            layer.weight[channel] = 0
            layer.bias[channel] = 0
        attention.proj_in.weight[:, channel] = 0
        unet.conv_norm_out.weight[channel] = GAIN
        unet.conv_norm_out.bias[channel] = STRAIGHT - GAIN * offset / group_spread


def _bias(layer: nn.Conv2d) -> torch.Tensor:
    assert layer.bias is not None
    return layer.bias
