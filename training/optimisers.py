"""What learns: AdamW, and Muon (Jordan et al. 2024): momentum whose every matrix is made nearly orthogonal first.

PyTorch's own Muon takes no convolutions and multiplies in bfloat16, which is six times slower on CPUs without it.
"""

from collections.abc import Callable

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the coefficients of Jordan's quintic iteration
ITERATIONS = 5
MOMENTUM = 0.95
BETAS = (0.9, 0.98)  # of AdamW
RMS = 0.2  # of an update, in units of the learning rate: about AdamW's, so that both take the same rate


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions or more; all but the first count as one."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"])
        return loss

    def _update(self, parameter: nn.Parameter, gradient: torch.Tensor, lr: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(state["momentum"], MOMENTUM).flatten(1)  # Nesterov's momentum
        scale = RMS * max(ahead.shape) ** 0.5
        parameter.add_(orthogonalised(ahead).view(parameter.shape), alpha=-lr * scale)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with the same singular vectors whose singular values lie within about 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def muon_and_adamw(module: nn.Module, learning_rate: float) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices and convolutions of ``module``, AdamW for its embeddings, biases and norms.

    For autoencoders: trained so, ours finds a code for textures in minutes, which AdamW alone never found.
    """
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    matrices, others = [], []
    for parameter in module.parameters():
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (matrices if is_matrix else others).append(parameter)
    return Muon(matrices, learning_rate), torch.optim.AdamW(others, learning_rate, betas=BETAS, weight_decay=0)


def adamw(module: nn.Module, learning_rate: float) -> tuple[torch.optim.AdamW]:
    """AdamW with hardly any weight decay. For UNets: a step of Muon teaches ours no more and takes twice as long."""
    return (torch.optim.AdamW(module.parameters(), learning_rate, betas=BETAS, weight_decay=1e-3),)
