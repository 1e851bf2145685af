"""The fast UNet and autoencoder against eager's graphs: every step alone and all together, beyond rounding equal."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairy.engines.compiled import attention, joined_attention
from fairy.export.bases.fast_blocks import Float8Linear, NotServed
from fairy.export.bases.fast_unet import FastUNet
from fairy.export.bases.fast_vae import FastVaeDecoder, FastVaeEncoder
from fairy.export.bases.stable_diffusion import UNetGraph, VaeDecoderGraph, VaeEncoderGraph
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.graphs import GraphSpec, anchor_layers, frame_layers, self_attention_layers, unet_spec
from fairy.export.shapes import random_inputs
from fairy.export.steps import ALL_STEPS, EXACT_STEPS, NO_STEPS, STEPS, Steps
from fairy.kernels.anchor_attention import anchor_attention
from fairy.runtime.models import embedded_model
from tests.conftest import make_unet, make_vae

OF_A_UNET = (
    *("one-batch", "channels-last", "anchor-attention", "group-norm-silu", "geglu", "fused-qkv", "text-kv"),
    *("time-embeddings", "shared-first-block", "folded-upsampling"),
)
OF_A_VAE = ("channels-last", "group-norm-silu", "fused-qkv", "folded-upsampling", "lean-vae")
RULES: dict[str, Callable[[Any, str], Any]] = {
    "unet": lambda layers, _: layers,
    "unet_anchor": anchor_layers,
    "unet_frame": frame_layers,
}


@cache
def _unet(model: str, dtype: torch.dtype) -> Any:
    return _copy(make_unet(seed=5) if model == "random" else _embedded().unet, dtype)


@cache
def _embedded() -> Checkpoint:
    return load_checkpoint(embedded_model())


def _copy(module: Any, dtype: torch.dtype) -> Any:
    return nn.Module.to(copy.deepcopy(module), dtype)


def _spec(unet: Any, graph: str, choice: str = "all") -> GraphSpec:
    layers = RULES[graph](self_attention_layers(unet), choice)
    ends = {"in_channels": unet.config.in_channels, "out_channels": unet.config.out_channels}
    return unet_spec(graph, layers, **ends, text_channels=unet.config.cross_attention_dim)


def _inputs(spec: GraphSpec, groups: int, frames: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Random inputs in which the first two branches see the same picture and anchors of the same picture."""
    sizes = {"groups": groups, "frames": frames, "tokens": 7, "height": size[0], "width": size[1]}
    levels = max(layer.level for layer in spec.layers)
    sizes |= {f"context_{level}": 2 * (size[0] >> level) * (size[1] >> level) for level in range(levels + 1)}
    inputs = random_inputs(spec, sizes, torch.float64, seed=groups + frames)
    first = spec.layers[0].name
    for name, t in inputs.items():
        if name == "sample" or name.startswith(f"context.0.{first}."):
            t[0] = t[1]
    inputs["timestep"][:] = 501.25
    return inputs


def _fast(unet: Any, spec: GraphSpec, steps: Steps, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The fast UNet's outputs, told what its steps want."""
    fast = FastUNet(unet, steps, attention(steps))
    told = dict(inputs)
    if "shared-first-block" in steps:
        told["sample"] = told["sample"][1:]
    if "text-kv" in steps:
        told |= fast.prepare_text(told.pop("text"))
    if "time-embeddings" in steps:
        times = torch.tensor([3.0, float(told.pop("timestep")[0])])
        told |= fast.prepare_times(times, inputs["sample"].dtype)[1]
    return tuple(fast(told, spec))


def _wide(steps: Steps, model: str, graph: str, choice: str = "all") -> None:
    """Float64 leaves no room for an error of arithmetic."""
    unet = _unet(model, torch.float64)
    spec = _spec(unet, graph, choice)
    inputs = _inputs(spec, 3, 2, (8, 16) if model == "random" else (4, 8))
    with torch.inference_mode():
        expected = UNetGraph(unet, spec)(*inputs.values())
        found = _fast(unet, spec, steps, inputs)
    assert len(found) == len(expected) == len(spec.outputs)
    for tensor, a, b in zip(spec.outputs, found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-11, msg=lambda m, n=tensor.name: f"{n}: {m}")


@pytest.mark.parametrize("step", OF_A_UNET)
@pytest.mark.parametrize("graph", list(RULES))
def test_a_step_alone_is_exact(step: str, graph: str) -> None:
    _wide(frozenset({step}), "embedded", graph)


@pytest.mark.parametrize("graph", list(RULES))
@pytest.mark.parametrize("left_out", ["nothing", "shared-first-block", "text-kv", "channels-last", "anchor-attention"])
def test_all_steps_are_exact_in_sd15s_layout(graph: str, left_out: str) -> None:
    _wide(EXACT_STEPS - {left_out}, "random", graph, "decoder" if left_out == "text-kv" else "all")


def test_every_step_of_a_network_is_tested_here() -> None:
    elsewhere = {"shared-first-step", "static-input", "guidance-step", "inductor", "cuda-graphs"}
    assert {step.name for step in STEPS if step.exact} == {*OF_A_UNET, *OF_A_VAE} | elsewhere


@pytest.mark.parametrize("groups", [1, 2])
def test_fewer_branches_and_times_that_differ(groups: int) -> None:
    unet = _unet("random", torch.float64)
    spec = _spec(unet, "unet_frame")
    inputs = _inputs(spec, groups, 3, (16, 8)) if groups > 1 else _single(spec)
    inputs["timestep"] = torch.tensor([901.5, 3.25, 77.0])
    steps = EXACT_STEPS - {"time-embeddings"} - ({"shared-first-block"} if groups == 1 else set())
    with torch.inference_mode():
        expected = UNetGraph(unet, spec)(*inputs.values())[0]
        found = _fast(unet, spec, steps, inputs)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-11)


def _single(spec: GraphSpec) -> dict[str, Tensor]:
    both = _inputs(spec, 2, 3, (16, 8))
    return {name: t if name == "timestep" else t[:1] for name, t in both.items()}


def _errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> Tensor:
    """Relative L2 error of every output."""
    pairs = zip(found, exact, strict=True)
    return torch.tensor([float((a.double() - b).norm() / b.norm()) for a, b in pairs])


@pytest.mark.parametrize("model", ["random", "embedded"])
@pytest.mark.parametrize("graph", ["unet_anchor", "unet_frame"])
def test_float32_is_as_good_as_eagers(model: str, graph: str) -> None:
    unet, wide = _unet(model, torch.float32), _unet(model, torch.float64)
    spec = _spec(unet, graph)
    exact_inputs = _inputs(spec, 3, 2, (8, 16))
    inputs = {name: t.float() for name, t in exact_inputs.items()}
    exact_inputs = {n: t if n == "timestep" else t.double() for n, t in inputs.items()}
    with torch.inference_mode():
        exact = UNetGraph(wide, spec)(*exact_inputs.values())
        eager = _errors(UNetGraph(unet, spec)(*inputs.values()), exact)
        fast = _errors(_fast(unet, spec, EXACT_STEPS, inputs), exact)
    assert eager.max() < 1e-4
    # A layer whose input happens to be ill conditioned multiplies any rounding, so the typical layer counts.
    assert fast[0] < 2.5 * eager[0], (fast[0], eager[0])
    assert (fast / eager).median() < 2.5, fast / eager
    assert fast.max() < 10 * eager.max()


def test_the_network_itself_is_not_changed() -> None:
    unet = make_unet(seed=5)
    before = {name: (t.clone(), t.stride()) for name, t in unet.state_dict().items()}
    FastUNet(unet, EXACT_STEPS, anchor_attention)
    for name, t in unet.state_dict().items():
        assert torch.equal(t, before[name][0])
        assert t.stride() == before[name][1]


@pytest.mark.parametrize("step", [*OF_A_VAE, "all", "none"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_autoencoder_with_a_step_is_exact(step: str, part: str) -> None:
    vae = make_vae().double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    steps = {"all": EXACT_STEPS, "none": NO_STEPS}.get(step, frozenset({step}))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        if part == "encoder":
            x = torch.randn(2, 3, 40, 56, generator=generator, dtype=torch.float64)
            found, expected = FastVaeEncoder(vae, steps)(x)[0], VaeEncoderGraph(vae)(x)[0]
        else:
            x = torch.randn(2, 4, 5, 7, generator=generator, dtype=torch.float64)
            found, expected = FastVaeDecoder(vae, steps)(x)[0], VaeDecoderGraph(vae)(x)[0]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-11)


def test_the_embedded_autoencoder_in_float32() -> None:
    """The means of three pictures: how sums round differs from one to the next."""
    vae = _embedded().vae
    wide, generator = _copy(vae, torch.float64), torch.Generator().manual_seed(0)
    encoders = (VaeEncoderGraph(vae), FastVaeEncoder(vae, EXACT_STEPS))
    decoders = (VaeDecoderGraph(vae), FastVaeDecoder(vae, EXACT_STEPS))
    encoded, decoded = [], []
    with torch.inference_mode():
        for _ in range(3):
            x = torch.rand(1, 3, 64, 96, generator=generator) * 2 - 1
            (exact,) = VaeEncoderGraph(wide)(x.double())
            encoded.append([float(_errors((made(x)[0],), (exact,))) for made in encoders])
            z = exact.float() * vae.config.scaling_factor
            (exact,) = VaeDecoderGraph(wide)(z.double())
            decoded.append([float(_errors((made(z)[0],), (exact,))) for made in decoders])
    for errors in (encoded, decoded):
        eager, fast = (sum(pair[i] for pair in errors) / 3 for i in (0, 1))
        assert fast < 3 * eager, (fast, eager)


@pytest.mark.parametrize(
    "changes",
    [
        {"resnet_time_scale_shift": "scale_shift"},
        {"act_fn": "gelu"},
        {"class_embed_type": "timestep"},
        {"only_cross_attention": True},
    ],
)
def test_what_it_does_not_know_it_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(NotServed):
        FastUNet(make_unet(**changes), EXACT_STEPS, joined_attention)


def _float8_names(unet: FastUNet) -> set[str]:
    return {name.rpartition(".blocks.0.")[2] for name, m in unet.named_modules() if isinstance(m, Float8Linear)}


@pytest.mark.parametrize("graph", list(RULES))
@pytest.mark.parametrize("fused", [True, False])
def test_linears_in_8_bit_are_near_and_are_those_that_are_meant(graph: str, fused: bool) -> None:
    unet = _unet("embedded", torch.float32)
    spec = _spec(unet, graph)
    inputs = {n: t if n == "timestep" else t.float() for n, t in _inputs(spec, 3, 2, (8, 16)).items()}
    steps = EXACT_STEPS if fused else EXACT_STEPS - {"fused-qkv"}
    with torch.inference_mode():
        exact = UNetGraph(unet, spec)(*inputs.values())
        errors = _errors(_fast(unet, spec, steps | {"fp8-linears"}, inputs), exact)
    assert 1e-3 < errors[0] < 0.25  # these inputs are noise, which no layer was trained for
    assert errors.min() > 1e-5, "a layer's keys or values were not touched"
    own = {"joined"} if fused else {"parts.0", "parts.1", "parts.2"}
    names = {f"attn1.projections.{name}" for name in own} | {
        "attn1.out",
        "attn2.to_q",
        "attn2.out",
        "ff.gate",
        "ff.out",
    }
    made = FastUNet(unet, steps | {"fp8-linears"}, anchor_attention)
    assert _float8_names(made) == names
    assert not _float8_names(FastUNet(unet, steps, anchor_attention))


def test_linears_in_8_bit_are_what_the_definition_makes_of_the_layers() -> None:
    """Eager's own network with the inputs and weights of these layers rounded by hand.

    In float64, for whatever two sums differ by decides how some value is rounded: what starts as 10⁻⁷ in float32 is,
    some layers on, as large as what rounding costs at all.
    """
    unet = _unet("embedded", torch.float64)
    spec = _spec(unet, "unet_frame")
    inputs = _inputs(spec, 3, 2, (4, 8))
    by_hand = copy.deepcopy(unet)
    for name, layer in by_hand.named_modules():
        text = name.endswith(("attn2.to_k", "attn2.to_v"))
        if isinstance(layer, nn.Linear) and ".transformer_blocks." in name and not text:
            layer.weight.data = _rounded(layer.weight.data)
            layer.register_forward_pre_hook(lambda layer, given: (_rounded(given[0]),))
    with torch.inference_mode():
        expected = UNetGraph(by_hand, spec)(*inputs.values())
        found = _fast(unet, spec, ALL_STEPS, inputs)
    assert _errors(found, expected).max() < 1e-6


def _rounded(t: Tensor) -> Tensor:
    single = t.float()
    largest = single.abs().amax(-1, keepdim=True)
    eighth = (single * (torch.full_like(largest, 448) / largest)).to(torch.float8_e4m3fn)
    return eighth.double() * (largest / torch.full_like(largest, 448)).double()


@pytest.mark.parametrize("fast", [FastVaeEncoder, FastVaeDecoder])
def test_an_autoencoder_stays_in_full_precision(fast: Any) -> None:
    channels = 3 if fast is FastVaeEncoder else _embedded().vae.config.latent_channels
    x = torch.randn(1, channels, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(fast(_embedded().vae, ALL_STEPS)(x)[0], fast(_embedded().vae, EXACT_STEPS)(x)[0])
