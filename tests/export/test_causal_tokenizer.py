"""The causal tokenizer: nothing depends on what is later, chunks give what the whole gives, codes are the levels'."""

import itertools

import pytest
import torch

from fairy.export.bases.causal_tokenizer import CausalVideoTokenizer, FiniteScalarQuantizer
from fairy.kernels.errors import InputError


@pytest.fixture(scope="module")
def tokenizer() -> CausalVideoTokenizer:
    torch.manual_seed(0)
    made = CausalVideoTokenizer(
        height=16, width=24, hidden_size=32, num_attention_heads=2, num_spatial_layers=1, num_temporal_layers=2,
        temporal_window=3, levels=(4, 3, 3),
    )  # fmt: skip
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval().requires_grad_(False)


def video(frames: int, seed: int = 1, videos: int = 1) -> torch.Tensor:
    return torch.rand(videos, 3, frames, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_codes_of_earlier_frames_do_not_change_by_a_bit_when_later_ones_do(tokenizer: CausalVideoTokenizer) -> None:
    whole = video(13)
    levels, _ = tokenizer._encode(whole, None)
    for known in (1, 3, 7, 11):
        changed = whole.clone()
        changed[:, :, known:] = video(13, seed=2)[:, :, known:]
        others, _ = tokenizer._encode(changed, None)
        count = (known + 1) // 2
        assert torch.equal(levels[:, :count], others[:, :count])
        assert not torch.equal(levels[:, count:], others[:, count:])


def test_earlier_frames_do_not_change_by_a_bit_when_later_codes_do(tokenizer: CausalVideoTokenizer) -> None:
    codes, _ = tokenizer.encode(video(13))
    frames, _ = tokenizer.decode(codes)
    for known in (1, 2, 5):
        changed = codes.clone()
        changed[:, known:] = (changed[:, known:] + 1) % tokenizer.num_codes
        others, _ = tokenizer.decode(changed)
        count = 2 * known - 1
        assert torch.equal(frames[:, :, :count], others[:, :, :count])
        assert not torch.equal(frames[:, :, count:], others[:, :, count:])


def test_a_picture_is_a_video_of_one_frame(tokenizer: CausalVideoTokenizer) -> None:
    whole = video(5)
    codes, _ = tokenizer.encode(whole)
    of_picture, _ = tokenizer.encode(whole[:, :, :1])
    assert of_picture.shape == (1, 1, 2, 3)
    assert torch.equal(of_picture, codes[:, :1])
    torch.testing.assert_close(tokenizer.decode(of_picture)[0], tokenizer.decode(codes)[0][:, :, :1])


@pytest.mark.parametrize("chunks", [(1, 20), (3, 2, 6, 10), (1, *[2] * 10), (15, 6)])
def test_chunks_give_what_the_whole_gives(chunks: tuple[int, ...], tokenizer: CausalVideoTokenizer) -> None:
    whole = video(21, videos=2)
    codes, _ = tokenizer.encode(whole)
    frames, _ = tokenizer.decode(codes)
    encoded, decoded, to_encode, to_decode = [], [], None, None
    for stop in itertools.accumulate(chunks):
        part = whole[:, :, sum(p.shape[2] for p in decoded) : stop]
        made, to_encode = tokenizer.encode(part, to_encode)
        again, to_decode = tokenizer.decode(made, to_decode)
        encoded.append(made)
        decoded.append(again)
    assert torch.equal(torch.cat(encoded, dim=1), codes)
    torch.testing.assert_close(torch.cat(decoded, dim=2), frames, rtol=0, atol=1e-5)


def test_the_state_does_not_grow(tokenizer: CausalVideoTokenizer) -> None:
    _, state = tokenizer.encode(video(1))
    sizes = []
    for _ in range(5):
        _, state = tokenizer.encode(video(4), state)
        sizes.append(tuple(state.shape))
    assert set(sizes) == {(2, 6, 2, 64)}


def test_what_is_forgotten_is_what_cannot_matter(tokenizer: CausalVideoTokenizer) -> None:
    """Frames change with codes up to `memory` token frames before them, and with none earlier."""
    codes, _ = tokenizer.encode(video(21))
    frames, _ = tokenizer.decode(codes)
    assert tokenizer.memory == 4
    for back, matters in ((4, True), (5, False)):
        changed = codes.clone()
        changed[:, 10 - back] = (changed[:, 10 - back] + 1) % tokenizer.num_codes
        others, _ = tokenizer.decode(changed)
        assert torch.equal(others[:, :, -2:], frames[:, :, -2:]) != matters


def test_boxes_of_pixels_are_cut_and_joined_in_place() -> None:
    """What a code stands for is its own pixels: `_frames` undoes `_patches`, also where they are no squares."""
    oblong = CausalVideoTokenizer(height=16, width=24, patch_size=(4, 12), hidden_size=16, num_attention_heads=2)
    whole = video(4)
    boxes = oblong._patches(whole, 2)
    assert boxes.shape == (1, 2, 8, 3 * 2 * 48)
    assert torch.equal(boxes[0, 1, 3].view(3, 2, 4, 12), whole[0, :, 2:, 4:8, 12:])
    assert torch.equal(oblong._frames(boxes, 2), whole)


@pytest.mark.parametrize("levels", [(4, 3, 3), (8, 5, 5, 5), (2, 7)])
def test_codes_and_levels_are_each_others_inverse(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(quantizer.num_codes)
    values = quantizer.values(codes)
    assert torch.equal(quantizer.codes(values), codes)
    every = torch.cartesian_prod(*[(torch.arange(n) - n // 2) / (n // 2) for n in reversed(levels)]).flip(1)
    torch.testing.assert_close(values, every)


def test_every_level_is_reached_and_gradients_pass() -> None:
    quantizer = FiniteScalarQuantizer((8, 5))
    z = torch.linspace(-6, 6, 1001)[:, None].expand(-1, 2).clone().requires_grad_()
    made = quantizer(z)
    assert [len(made[:, i].detach().unique()) for i in range(2)] == [8, 5]
    made.sum().backward()
    assert (z.grad[400:600] > 0.1).all()


@pytest.mark.parametrize(
    ("frames", "later", "sentence"),
    [(2, False, "has 2 frames and must have 1, 3, 5"), (3, True, "has 3 frames and must have 2, 4, 6")],
)
def test_a_wrong_number_of_frames_is_refused(
    frames: int, later: bool, sentence: str, tokenizer: CausalVideoTokenizer
) -> None:
    state = tokenizer.encode(video(1))[1] if later else None
    with pytest.raises(InputError, match=sentence):
        tokenizer.encode(video(frames), state)


def test_another_size_is_refused(tokenizer: CausalVideoTokenizer) -> None:
    with pytest.raises(InputError, match=r"must be \[videos, 3, frames, 16, 24\], not \[1, 3, 1, 16, 16\]"):
        tokenizer.encode(torch.zeros(1, 3, 1, 16, 16))
