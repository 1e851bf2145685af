"""`fairy::guidance_step` against the runtime's own guidance and Euler-ancestral step, in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.kernels.guidance_step import guidance_step, guidance_step_plain, guidance_step_reference
from fairy.runtime.denoise.guidance import guide, make_guidance
from fairy.runtime.denoise.prediction import step_coefficients
from fairy.runtime.denoise.sampler import PREDICTION_TYPES, Schedule, euler_ancestral_step, needs_noise

SIGMAS = (14.6, 5.2, 1.3, 0.2, 0.0)
SCALES = [(7.5, 1.5), (7.5, 1.0), (1.0, 1.0), (3.0, 3.0), (0.0, 1.0), (2.5, 0.0)]


def _schedule(prediction_type: str) -> Schedule:
    return Schedule("euler_ancestral", prediction_type, (999.0, 700.0, 400.0, 100.0), 14.6, SIGMAS)


def _draw(branches: int, frames: int, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((branches, frames, 4, 6, 5), (frames, 4, 6, 5), (1, 4, 6, 5))
    outputs, latents, noise = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return [outputs.to(dtype), latents, noise]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_it_is_the_runtimes_own_rule(
    prediction_type: str, scales: tuple[float, float], dtype: torch.dtype, device: torch.device
) -> None:
    """Guided in float32 by `guide`, stepped in float64 by `euler_ancestral_step`, at every step of a schedule."""
    guidance, schedule = make_guidance(*scales), _schedule(prediction_type)
    outputs, latents, noise = _draw(guidance.groups, 3, device, dtype)
    for i in range(len(schedule)):
        fresh = noise if needs_noise(schedule, i) else None
        row = step_coefficients(schedule, guidance)[i]
        found = guidance_step(outputs, latents, fresh, torch.tensor([row], device=device))
        guided = guide(guidance, outputs).double()
        wide = None if fresh is None else fresh.double()
        expected = euler_ancestral_step(schedule, i, latents.double(), guided, wide)
        scale = 1 + max(abs(c) for c in row)
        torch.testing.assert_close(found.double(), expected, atol=1e-6 * scale, rtol=1e-6)


def test_every_frame_may_have_its_own_step(device: torch.device) -> None:
    outputs, latents, noise = _draw(3, 3, device)
    rows = step_coefficients(_schedule("epsilon"), make_guidance(7.5, 1.5))[:3]
    together = guidance_step(outputs, latents, noise, torch.tensor(rows, device=device))
    for f, row in enumerate(rows):
        alone = guidance_step(outputs[:, f : f + 1], latents[f : f + 1], noise, torch.tensor([row], device=device))
        torch.testing.assert_close(together[f], alone[0], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("noise_frames", [0, 1, 5])
@pytest.mark.parametrize("coefficient_frames", [1, 5])
def test_op_against_float64(noise_frames: int, coefficient_frames: int, device: torch.device, poisoned: None) -> None:
    outputs, latents, _ = _draw(2, 5, device)
    noise = torch.randn(noise_frames, 4, 6, 5, device=device) if noise_frames else None
    coefficients = torch.randn(coefficient_frames, 4, device=device)
    found = guidance_step(outputs, latents, noise, coefficients)
    assert found.is_contiguous()
    expected = guidance_step_reference(outputs, latents, noise, coefficients)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)


def test_the_variance_of_the_next_level_is_kept() -> None:
    """Exact prediction of the noise: what is left of it and the fresh noise add up to σ_next²."""
    rows = step_coefficients(_schedule("epsilon"), make_guidance(1.0, 1.0))
    for (sigma, following), (x, fresh, branch) in zip(itertools.pairwise(SIGMAS), rows, strict=True):
        assert x == 1.0
        left = sigma * x + branch  # of unit noise, where latents = σ·noise
        assert math.isclose(left**2 + fresh**2, following**2, rel_tol=1e-12, abs_tol=1e-12)


def test_opcheck(device: torch.device) -> None:
    outputs, latents, noise = _draw(3, 2, device)
    coefficients = torch.ones(1, 5, device=device)
    expanded = latents[:1].expand(2, -1, -1, -1)
    for args in ((outputs, latents, noise, coefficients), (outputs.half(), expanded, None, coefficients.expand(2, -1))):
        torch.library.opcheck(torch.ops.fairy.guidance_step.default, args)


def test_it_traces_with_any_number_of_frames(device: torch.device) -> None:
    class Step(torch.nn.Module):
        def forward(self, outputs: Tensor, latents: Tensor, noise: Tensor, coefficients: Tensor) -> Tensor:
            return guidance_step(outputs, latents, noise, coefficients) * 2

    frames = torch.export.Dim("frames")
    coefficients = torch.randn(1, 5, device=device)
    args = (*_draw(3, 4, device), coefficients)
    exported = torch.export.export(Step(), args, dynamic_shapes=({1: frames}, {0: frames}, None, None))
    assert "fairy.guidance_step" in str(exported.graph)
    compiled = torch.compile(Step(), backend="aot_eager", fullgraph=True, dynamic=True)
    for count in (4, 7):
        args = (*_draw(3, count, device), coefficients)
        expected = guidance_step_plain(*args) * 2
        torch.testing.assert_close(exported.module()(*args), expected, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(compiled(*args), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o, x, n, c: (o[0], x, n, c), "branches, frames, C, h, w"),
        (lambda o, x, n, c: (o[:, :1], x, n, c), "branches, frames, C, h, w"),
        (lambda o, x, n, c: (o, x, n.expand(3, -1, -1, -1), c), "1 or 2 frames"),
        (lambda o, x, n, c: (o, x, n[:, :1], c), "shape of the latents"),
        (lambda o, x, n, c: (o, x, n, c[:, :4]), "1 or 2, 5"),
        (lambda o, x, n, c: (o, x.half(), n, c), "float32"),
        (lambda o, x, n, c: (o, x, n, c.double()), "float32"),
    ],
)
def test_wrong_inputs_are_refused_in_a_sentence(change, words: str) -> None:
    with pytest.raises(InputError, match=words):
        guidance_step(*change(*_draw(3, 2, torch.device("cpu")), torch.ones(1, 5)))
