"""The UNet graphs against what they claim to be: diffusers' own UNet, joint attention, and concatenation."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.export.bases.stable_diffusion import UNetGraph
from fairy.export.graphs import (
    GraphSpec,
    SelfAttention,
    anchor_layers,
    frame_layers,
    self_attention_layers,
    unet_spec,
)
from fairy.kernels.errors import InputError
from tests.conftest import TEXT_CHANNELS, make_unet

G, F_, H, W = 3, 3, 8, 16  # groups, frames, latent height and width


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return make_unet(seed=5).double()


def _spec(name: str, layers: tuple[SelfAttention, ...]) -> GraphSpec:
    return unet_spec(name, layers, in_channels=8, out_channels=4, text_channels=TEXT_CHANNELS)


def _inputs(frames: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(G, frames, 8, H, W, generator=generator, dtype=torch.float64)
    text = torch.randn(G, 5, TEXT_CHANNELS, generator=generator, dtype=torch.float64)
    return sample, torch.linspace(901.5, 3.25, frames), text


def _diffusers(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    """Every frame on its own through diffusers' unchanged UNet."""
    plain = make_unet(seed=5).double()
    out = torch.empty_like(sample[:, :, :4])
    for g in range(sample.shape[0]):
        for f in range(sample.shape[1]):
            out[g, f] = plain(sample[g, f : f + 1], timestep[f], text[g : g + 1]).sample[0]
    return out


class _JointAttention:
    """Attention of all frames to all frames, written for this test alone: reshape, then plain SDPA."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None) -> Tensor:
        joint = encoder_hidden_states is None
        x = hidden_states.reshape(-1, self.frames * hidden_states.shape[1], hidden_states.shape[2]) if joint else None
        source = x if joint else encoder_hidden_states
        q, k, v = attn.to_q(x if joint else hidden_states), attn.to_k(source), attn.to_v(source)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).reshape(hidden_states.shape)
        return attn.to_out[0](out)


def test_layers_of_the_sd15_layout(unet: torch.nn.Module) -> None:
    layers = self_attention_layers(unet)
    assert len(layers) == 16
    assert [layer.level for layer in layers] == [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert [layer.channels for layer in layers[:7]] == [32, 32, 64, 64, 128, 128, 128]
    assert layers[6].name.startswith("mid_block.")
    assert {layer.heads for layer in layers} == {8}


def test_without_anchors_it_is_diffusers_unet(unet: torch.nn.Module) -> None:
    inputs = _inputs(F_)
    (output,) = UNetGraph(unet, _spec("unet", self_attention_layers(unet)))(*inputs)
    torch.testing.assert_close(output, _diffusers(*inputs), atol=1e-10, rtol=1e-10)


def test_anchors_attend_jointly(unet: torch.nn.Module) -> None:
    sample, timestep, text = _inputs(F_)
    timestep = timestep[:1].expand(F_)
    graph = UNetGraph(unet, _spec("unet_anchor", anchor_layers(self_attention_layers(unet), "all")))
    output = graph(sample, timestep, text)[0]
    plain = make_unet(seed=5).double()
    plain.set_attn_processor(_JointAttention(F_))
    expected = plain(
        sample.flatten(0, 1), timestep.repeat(G), text.unsqueeze(1).expand(-1, F_, -1, -1).flatten(0, 1)
    ).sample.unflatten(0, (G, F_))
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    assert (output - _diffusers(sample, timestep, text)).abs().max() > 1e-4  # anchors really change something


@pytest.mark.parametrize("choice", ["all", "decoder"])
def test_the_bank_equals_concatenation(unet: torch.nn.Module, choice: str) -> None:
    """A frame against the bank = the frame put beside the anchors with [own ; anchors] keys, computed jointly."""
    layers = self_attention_layers(unet)
    anchor_graph = UNetGraph(unet, _spec("unet_anchor", anchor_layers(layers, choice)))
    frame_spec = _spec("unet_frame", frame_layers(layers, choice))
    sample, timestep, text = _inputs(F_)
    results = anchor_graph(sample, timestep[:1].expand(F_), text)
    emitted = dict(zip([t.name for t in anchor_graph.spec.outputs], results, strict=True))
    frames, _, _ = _inputs(2, seed=9)
    context, joined = [], {}
    for layer in frame_spec.layers:
        if layer.segments:
            k, v = (emitted[name].flatten(1, 2) for name in layer.emitted)
            context += [k.unsqueeze(1), v.unsqueeze(1)]
            joined[layer.name] = (k, v)
    (output,) = UNetGraph(unet, frame_spec)(frames, timestep[:1].expand(2), text, *context)
    plain = make_unet(seed=5).double()
    for f in range(2):
        for name in [n.removesuffix(".processor") for n in plain.attn_processors]:
            plain.get_submodule(name).set_processor(_Concatenation(joined.get(name)))
        expected = plain(frames[:, f], timestep[0], text).sample
        torch.testing.assert_close(output[:, f], expected, atol=1e-10, rtol=1e-10)


class _Concatenation:
    """Own keys followed by the anchors', joined with torch.cat, for one frame in every group."""

    def __init__(self, bank: tuple[Tensor, Tensor] | None) -> None:
        self.bank = bank

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if encoder_hidden_states is None and self.bank is not None:
            k, v = torch.cat([k, self.bank[0]], 1), torch.cat([v, self.bank[1]], 1)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return attn.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_graph_can_leave_own_tokens_out_and_read_segments_per_frame(unet: torch.nn.Module) -> None:
    """The parameters other methods need: segments per frame, own tokens off, in the decoder only."""
    layers = self_attention_layers(unet)
    rule = tuple(
        replace(layer, own="none", segments=("shared", "frame")) if layer.name.startswith("up_") else layer
        for layer in layers
    )
    emitting = tuple(replace(layer, emits=layer.name.startswith("up_")) for layer in layers)
    sample, timestep, text = _inputs(2)
    emit_graph = UNetGraph(unet, _spec("emit", emitting))
    results = dict(zip([t.name for t in emit_graph.spec.outputs], emit_graph(sample, timestep, text), strict=True))
    spec = _spec("pair", rule)
    values = {}
    for layer in rule:
        for s, kind in enumerate(layer.segments):
            for target, name in zip(layer.context(s), layer.emitted, strict=True):
                values[target] = results[name][:, :1] if kind == "shared" else results[name]
    (output,) = UNetGraph(unet, spec)(sample, timestep, text, *[values[t.name] for t in spec.inputs[3:]])
    # Frame 0 reads its own keys twice, which changes nothing: it must equal the plain network.
    torch.testing.assert_close(output[:, 0], _diffusers(sample, timestep, text)[:, 0], atol=1e-10, rtol=1e-10)
    assert (output[:, 1] - _diffusers(sample, timestep, text)[:, 1]).abs().max() > 1e-5


def test_two_graphs_of_one_unet_do_not_disturb_each_other(unet: torch.nn.Module) -> None:
    layers = self_attention_layers(unet)
    plain = UNetGraph(unet, _spec("unet", layers))
    inputs = _inputs(F_)
    before = plain(*inputs)[0]
    anchor = UNetGraph(unet, _spec("unet_anchor", anchor_layers(layers, "all")))
    anchor(*inputs)
    assert torch.equal(before, plain(*inputs)[0])


def test_nothing_of_a_call_stays_on_the_modules(unet: torch.nn.Module) -> None:
    graph = UNetGraph(unet, _spec("unet_anchor", anchor_layers(self_attention_layers(unet), "all")))
    before = {name: sorted(vars(module)) for name, module in graph.named_modules()}
    graph(*_inputs(2))
    assert before == {name: sorted(vars(module)) for name, module in graph.named_modules()}
    for processor in unet.attn_processors.values():
        assert set(vars(processor)) == {"name"}


def test_tensors_are_named_and_shaped_as_the_spec_says(unet: torch.nn.Module) -> None:
    spec = _spec("unet_anchor", anchor_layers(self_attention_layers(unet), "all"))
    results = UNetGraph(unet, spec)(*_inputs(F_))
    sizes = {"groups": G, "frames": F_, "height": H, "width": W} | {
        f"own_{level}": (H >> level) * (W >> level) for level in range(4)
    }
    for tensor, result in zip(spec.outputs, results, strict=True):
        assert tuple(result.shape) == tuple(d if isinstance(d, int) else sizes[d] for d in tensor.dims), tensor
    names = [t.name for t in (*spec.inputs, *spec.outputs)]
    assert len(set(names)) == len(names)


def test_every_frame_has_its_own_time_step(unet: torch.nn.Module) -> None:
    sample, timestep, text = _inputs(F_)
    graph = UNetGraph(unet, _spec("unet", self_attention_layers(unet)))
    moved = timestep.clone()
    moved[1] = 500.0
    one, other = graph(sample, timestep, text)[0], graph(sample, moved, text)[0]
    torch.testing.assert_close(one[:, [0, 2]], other[:, [0, 2]], atol=1e-12, rtol=1e-12)
    assert (one[:, 1] - other[:, 1]).abs().max() > 1e-6


def test_impossible_layers_are_refused(unet: torch.nn.Module) -> None:
    layer = self_attention_layers(unet)[0]
    with pytest.raises(InputError, match="attend to nothing"):
        replace(layer, own="none")
    with pytest.raises(InputError, match="at most 4"):
        replace(layer, segments=("shared",) * 5)
    with pytest.raises(InputError, match="at most 3"):
        replace(layer, own="batch", segments=("shared",) * 4)
    with pytest.raises(InputError, match="choose one of all, decoder"):
        anchor_layers((layer,), "encoder")


def test_attention_outside_transformer_blocks_is_refused() -> None:
    odd = make_unet(
        down_block_types=("AttnDownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    )
    with pytest.raises(InputError, match="outside transformer blocks"):
        self_attention_layers(odd)
