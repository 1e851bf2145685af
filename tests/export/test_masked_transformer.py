"""The masked transformer: what is remembered is frozen and exact, and the new codes see all of each other."""

import pytest
import torch

from fairy.export.bases.masked_transformer import MaskedVideoTransformer
from fairy.kernels.errors import InputError


@pytest.fixture(scope="module")
def transformer() -> MaskedVideoTransformer:
    torch.manual_seed(0)
    made = MaskedVideoTransformer(
        num_codes=20, height=2, width=3, max_frames=3, max_frames_before=2, hidden_size=32, num_attention_heads=4,
        num_layers=3, cross_attention_dim=8,
    )  # fmt: skip
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made.eval().requires_grad_(False)


def codes(frames: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(20, (2, frames, 2, 3), generator=torch.Generator().manual_seed(seed))


TEXT = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(9))


def uncached(network: MaskedVideoTransformer, before: torch.Tensor, new: torch.Tensor, text: torch.Tensor, *,
             is_start: bool) -> torch.Tensor:  # fmt: skip
    """The oracle: all codes in one sequence in float64, with a mask by which those before do not see the new ones."""
    double = MaskedVideoTransformer.from_config(network.config).double()
    double.load_state_dict(network.state_dict())
    old = double._embedded(before, double.times_before[: before.shape[1]].flip(0), is_start)
    x = torch.cat([old, double._embedded(new, double.times[: new.shape[1]], False)], dim=1)
    hidden = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
    hidden[: old.shape[1], old.shape[1] :] = True
    for layer in double.layers:
        normed = layer.norm(x)
        q, k, v = (
            part.unflatten(2, (layer.heads, -1)).transpose(1, 2)
            for part in (layer.to_q(normed), *layer.to_kv(normed).chunk(2, dim=2))
        )
        scores = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(hidden, -torch.inf)
        x = x + layer.to_out((scores.softmax(3) @ v).transpose(1, 2).flatten(2))
        x = layer.feed_forward(layer.text(x, text.double()))
    return double.to_logits(double.norm_out(x[:, old.shape[1] :])).view(*new.shape, -1)


@pytest.mark.parametrize(("before", "new", "is_start"), [(1, 3, True), (2, 3, False), (2, 1, True)])
@torch.inference_mode()
def test_what_is_remembered_gives_what_all_codes_in_one_sequence_give(
    before: int, new: int, is_start: bool, transformer: MaskedVideoTransformer
) -> None:
    old, masked = codes(before), codes(new, 2)
    masked[:, :, 1] = transformer.mask
    remembered = transformer.remember(old, TEXT, is_start=is_start)
    made = transformer(masked, TEXT, remembered)
    wanted = uncached(transformer, old, masked, TEXT, is_start=is_start)
    torch.testing.assert_close(made.double(), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_new_codes_see_each_other_and_everything_before_and_the_text(transformer: MaskedVideoTransformer) -> None:
    new = codes(3)
    logits = transformer(new, TEXT, transformer.remember(codes(2), TEXT, is_start=False))[:, 0, 0, 0]
    later = new.clone()
    later[:, 2, 1, 2] += 1
    earlier = codes(2)
    earlier[:, 0, 1, 2] = (earlier[:, 0, 1, 2] + 1) % 20
    others = (
        transformer(later % 20, TEXT, transformer.remember(codes(2), TEXT, is_start=False)),
        transformer(new, TEXT, transformer.remember(earlier, TEXT, is_start=False)),
        transformer(new, TEXT, transformer.remember(codes(2), TEXT, is_start=True)),
        transformer(new, TEXT.flip(1) * 0.5, transformer.remember(codes(2), TEXT, is_start=False)),
        transformer(new, TEXT, None),
    )
    assert all((other[:, 0, 0, 0] - logits).abs().max() > 1e-4 for other in others)


def test_training_computes_what_sampling_computes(transformer: MaskedVideoTransformer) -> None:
    """With gradients the op is left; the numbers are the same."""
    learning = MaskedVideoTransformer.from_config(transformer.config)
    learning.load_state_dict(transformer.state_dict())
    made = learning(codes(3), TEXT, learning.remember(codes(2), TEXT, is_start=False))
    with torch.inference_mode():
        wanted = transformer(codes(3), TEXT, transformer.remember(codes(2), TEXT, is_start=False))
    torch.testing.assert_close(made.detach(), wanted, rtol=1e-5, atol=1e-5)
    made.square().mean().backward()
    assert learning.times_before.grad.abs().sum() > 0


def test_too_many_token_frames_are_refused(transformer: MaskedVideoTransformer) -> None:
    with pytest.raises(InputError, match=r"codes must be \[rows, 1 to 3, 2, 3\], not \[2, 4, 2, 3\]"):
        transformer(codes(4), TEXT, None)
    with pytest.raises(InputError, match="1 to 2"):
        transformer.remember(codes(3), TEXT, is_start=True)
