"""Muon: what its matrices are like, what it learns, and which parameters it leaves to AdamW."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.optimisers import Muon, muon_and_adamw, orthogonalised


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (96, 864), (864, 96), (4, 2)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_nearly_orthogonal_whatever_the_gradients_size(shape: tuple[int, int], size: float) -> None:
    """The singular values come near 1, the singular vectors are those of the polar factor."""
    matrix = size * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonalised(matrix)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.3, values
    assert values.max() < 1.3, values
    inner = u.T @ made @ vh.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-4, rtol=0)


def test_no_gradient_is_no_update() -> None:
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    optimiser = Muon([layer.weight], lr=0.1)
    optimiser.step()
    torch.testing.assert_close(layer.weight, before, atol=0, rtol=0)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimiser.step()
    torch.testing.assert_close(layer.weight, before, atol=0, rtol=0)


def test_update_has_the_stated_size() -> None:
    """The root mean square of an update of a full-rank matrix is about 0.2 times the learning rate."""
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=0.01).step()
    assert 0.6 * 0.002 < weight.detach().square().mean().sqrt() < 1.2 * 0.002


def test_convolution_is_one_matrix_in_any_memory_format() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, bias=False)
    last = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last)
    last.load_state_dict(plain.state_dict())
    for layer in (plain, last):
        optimiser = Muon([layer.weight], lr=0.1)
        for seed in range(3):
            gradient = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
            layer.weight.grad = gradient.to(memory_format=torch.channels_last) if layer is last else gradient
            optimiser.step()
    torch.testing.assert_close(plain.weight, last.weight, atol=1e-6, rtol=1e-5)


def test_learns_what_plain_descent_cannot_see() -> None:
    """Directions a hundred times weaker than others are learned at the same pace."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator) * torch.logspace(0, -2, 8)
    wanted = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]

    def error_after(steps: int, **optimiser: float) -> float:
        weight = nn.Parameter(torch.zeros(8, 8))
        chosen = Muon([weight], **optimiser) if len(optimiser) == 1 else torch.optim.SGD([weight], **optimiser)
        for _ in range(steps):
            weight.grad = torch.autograd.grad(F.mse_loss(x @ weight.T, x @ wanted.T), weight)[0]
            chosen.step()
        return float((weight - wanted).detach().square().mean())

    assert error_after(60, lr=0.1) < 0.2 * error_after(60, lr=1.0, momentum=0.95)


def test_who_is_updated_by_what() -> None:
    module = nn.ModuleDict({"table": nn.Embedding(5, 4), "layer": nn.Linear(4, 4), "norm": nn.GroupNorm(2, 4)})
    muon, adamw = muon_and_adamw(module, 1e-3)
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def updated(optimiser: torch.optim.Optimizer) -> set[str]:
        return {names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]}

    assert updated(muon) == {"layer.weight"}
    assert updated(adamw) == {"table.weight", "layer.bias", "norm.weight", "norm.bias"}
