"""The way for details: what goes in comes out, and what the last layer misses least is found."""

import pytest
import torch

from training.carry import Sample, Seen, carry_details, look, missed_least, ridge
from training.editor16 import TextEditor16


@pytest.fixture(scope="module")
def editor() -> TextEditor16:
    torch.manual_seed(0)
    return TextEditor16().eval()


def unchanged(count: int, seed: int) -> Sample:
    """Edits that change nothing; one of the channels is dead."""
    image = torch.randn(count, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    image[:, 9] *= 0.01
    return Sample(image / 2, image, torch.ones(count, 24, dtype=torch.long))


def error(model: TextEditor16, sample: Sample) -> float:
    noise = torch.randn(sample.image.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        v, _ = model(noise, sample.image, torch.full((len(noise),), 999), sample.tokens)
    return float((v + sample.target).square().mean())


def test_untrained_weights_copy_the_image_at_once(editor: TextEditor16) -> None:
    """A quarter is the variance of the target; a hundredth of the noise is left in v by the schedule."""
    held_out = unchanged(2, 1)
    before = error(editor, held_out)
    carry_details(editor, unchanged(8, 0))
    after = error(editor, held_out)
    assert before > 0.2
    assert after < 0.02, (before, after)


def test_the_first_layer_tells_every_live_latent(editor: TextEditor16) -> None:
    sample = unchanged(4, 2)
    seen = look(editor, sample)
    image = sample.image.movedim(1, -1).flatten(0, -2)
    weight, bias = ridge(seen.first_PF, image, 1e-8)
    rest = (seen.first_PF @ weight + bias - image).square().mean(dim=0)
    live = [c for c in range(16) if c != 9]
    assert float(rest[live].max()) < 1e-3


def test_least_squares_finds_a_line() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.0, 3.0]])
    found, bias = ridge(x, x @ weight + torch.tensor([5.0, -5.0]), 1e-8)
    torch.testing.assert_close(found, weight, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bias, torch.tensor([5.0, -5.0]), atol=1e-3, rtol=1e-3)


def test_groups_that_say_nothing_are_missed_least() -> None:
    """Of four groups of two features (nine places each) the first and the last say something of v."""
    features = torch.randn(2000, 4 * 18, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([features[:, 3], features[:, 60]], dim=1)
    assert sorted(missed_least(Seen(features, features, wanted), 2, 2)) == [1, 2]
