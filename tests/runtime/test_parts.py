"""The small pure pieces of an edit: noise, guidance, sizes, anchors, parts, parameters."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairy.kernels.errors import InputError
from fairy.runtime.bank.anchor_bank import AnchorBank
from fairy.runtime.denoise.guidance import branch_image, branch_text, guide, make_guidance
from fairy.runtime.denoise.noise import INITIAL, draw_noise
from fairy.runtime.plan.batches import cut_into_parts, default_micro_batch
from fairy.runtime.plan.choose_anchors import choose_anchors
from fairy.runtime.plan.geometry import make_geometry, pad_by_reflection, scale_frames
from fairy.runtime.plan.params import DEFAULTS, EditParams

# -- noise --------------------------------------------------------------------------------------------------------


def test_noise_is_what_the_seed_and_step_say() -> None:
    seed = int.from_bytes(hashlib.sha256(b"7/-1").digest()[:8], "big")
    expected = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(seed))
    found = draw_noise(7, INITIAL, [5, 9], (4, 3, 2), per_frame=False)
    assert found.shape == (1, 4, 3, 2)
    assert torch.equal(found[0], expected)


def test_noise_per_frame_depends_on_the_frame_and_not_on_its_place() -> None:
    one = draw_noise(0, 3, [1, 2, 3], (4, 2, 2), per_frame=True)
    other = draw_noise(0, 3, [3, 1], (4, 2, 2), per_frame=True)
    assert torch.equal(one[[2, 0]], other)
    assert not torch.equal(one[0], one[1])


@given(st.integers(0, 2**63 - 1), st.integers(-1, 999), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_noise_is_a_function_of_its_key(seed: int, step: int, frame: int) -> None:
    one = draw_noise(seed, step, [frame], (1, 2, 2), per_frame=True)
    assert torch.equal(one, draw_noise(seed, step, [frame], (1, 2, 2), per_frame=True))
    assert not torch.equal(one, draw_noise(seed, step + 1, [frame], (1, 2, 2), per_frame=True))


# -- guidance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "image", "branches"),
    [
        (7.5, 1.5, (0, 1, 2)),
        (1.0, 1.0, (0,)),
        (3.0, 3.0, (0, 2)),
        (0.0, 1.0, (1,)),
        (0.0, 0.0, (2,)),
        (5.0, 1.0, (0, 1)),
    ],
)
def test_branches_are_left_out_only_where_they_vanish(text: float, image: float, branches: tuple[int, ...]) -> None:
    guidance = make_guidance(text, image)
    assert guidance.branches == branches
    e = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    expected = e[2] + image * (e[1] - e[2]) + text * (e[0] - e[1])
    found = guide(guidance, e[list(branches)])
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_oscillating_guidance_keeps_its_branches() -> None:
    """Where one of the two scales needs a branch, every step computes it."""
    guidance = make_guidance(7.5, 1.0, low=1.0, high_steps=2)
    assert guidance.branches == (0, 1)
    assert [guidance.at(k).guidance_scale for k in range(6)] == [7.5, 7.5, 1.0, 7.5, 1.0, 7.5]
    outputs = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(guide(guidance.at(2), outputs), outputs[0])
    torch.testing.assert_close(guide(guidance.at(1), outputs), guide(make_guidance(7.5, 1.0), outputs))
    assert make_guidance(7.5, 1.5).at(3) == make_guidance(7.5, 1.5)


def test_branches_see_what_they_should() -> None:
    guidance = make_guidance(7.5, 1.5)
    prompt, negative = torch.full((2, 3), 1.0), torch.full((2, 3), -1.0)
    assert branch_text(guidance, prompt, negative)[:, 0, 0].tolist() == [1, -1, -1]
    image = torch.ones(2, 4, 3, 3)
    assert branch_image(guidance, image).amax((1, 2, 3, 4)).tolist() == [1, 1, 0]


# -- sizes --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 1024), st.sampled_from([8, 32, 64]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_sizes(height: int, width: int, long_side: int, multiple: int, upscale: bool) -> None:
    long, short = max(height, width), min(height, width)
    scaled_short = round(short * long_side / long)
    if scaled_short < 1 and (upscale or long > long_side):
        with pytest.raises(InputError, match="less than one pixel"):
            make_geometry(height, width, long_side=long_side, upscale=upscale, multiple=multiple)
        return
    geometry = make_geometry(height, width, long_side=long_side, upscale=upscale, multiple=multiple)
    if upscale or long > long_side:
        assert max(geometry.scaled) == long_side
        assert min(geometry.scaled) == scaled_short
    else:
        assert geometry.scaled == (height, width)
    assert (geometry.scaled[0] > geometry.scaled[1]) <= (height > width)
    for side, padded in zip(geometry.scaled, geometry.padded, strict=True):
        assert padded % multiple == 0
        assert side <= padded < side + multiple


@pytest.mark.parametrize(
    ("size", "long_side", "scaled", "padded"),
    [
        ((1080, 1920), 512, (288, 512), (320, 512)),
        ((384, 512), 512, (384, 512), (384, 512)),
        ((240, 320), 512, (240, 320), (256, 320)),
        ((853, 480), 512, (512, 288), (512, 320)),
    ],
)
def test_known_sizes(size, long_side: int, scaled, padded) -> None:
    geometry = make_geometry(*size, long_side=long_side, upscale=False, multiple=64)
    assert (geometry.scaled, geometry.padded) == (scaled, padded)
    assert geometry.latent(8) == (padded[0] // 8, padded[1] // 8)


# fmt: off
COMMON = (
    (3840, 2160), (4096, 2160), (4096, 1716), (3996, 2160), (2048, 1080), (2048, 858), (1998, 1080), (2560, 1440),
    (2560, 1080), (3440, 1440), (1920, 1080), (1920, 1088), (1920, 1200), (1920, 804), (1920, 800), (1920, 816),
    (1920, 1440), (1440, 1080), (1280, 720), (1280, 544), (1280, 536), (1280, 534), (1280, 960), (1080, 1920),
    (1080, 1350), (1080, 1080), (1170, 2532), (1284, 2778), (886, 1920), (960, 540), (854, 480), (848, 480),
    (852, 480), (720, 576), (720, 480), (704, 576), (640, 480), (640, 360), (720, 1280), (2532, 1170),
    (1600, 900), (1366, 768), (2704, 1520), (3840, 1608), (3840, 1600), (1792, 768), (1828, 1332),
)
# fmt: on


@pytest.mark.parametrize("long_side", [256, 384, 512, 768])
def test_common_sizes_stay_even(long_side: int) -> None:
    """For 4:2:0, which every player shows; the shape changes by no more than a hundredth."""
    for width, height in COMMON:
        scaled = make_geometry(height, width, long_side=long_side, upscale=False, multiple=64, even=True).scaled
        assert max(scaled) == min(long_side, max(width, height))
        assert scaled[0] % 2 == scaled[1] % 2 == 0
        assert scaled[1] / scaled[0] == pytest.approx(width / height, rel=0.01), (width, height)


@given(st.integers(1, 9), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_padding_reflects_as_often_as_it_takes(length: int, padded: int) -> None:
    if padded < length:
        return
    row = torch.arange(length, dtype=torch.float32).reshape(1, 1, 1, length)
    found = pad_by_reflection(row, (1, padded))[0, 0, 0].tolist()
    expected, at, direction = [], 0, 1
    for _ in range(padded):  # walk to and fro
        expected.append(float(at))
        if length > 1:
            direction = -direction if not 0 <= at + direction < length else direction
            at += direction
    assert found == expected


def test_scaling_is_antialiased_and_stays_in_range() -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255.0
    small = scale_frames(board.expand(1, 3, 64, 64), (16, 16))
    assert small[..., 2:-2, 2:-2].sub(127.5).abs().max() < 20  # a fine board becomes gray, not moiré
    assert small.min() >= 0
    assert small.max() <= 255
    assert scale_frames(small, (16, 16)) is small


# -- anchors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anchors", "frames", "expected"),
    [
        (None, 120, (20, 60, 100)),
        (None, 2, (0, 1)),
        (None, 1, (0,)),
        (3, 120, (20, 60, 100)),
        (1, 5, (2,)),
        (0, 5, ()),
        ([4, 0], 5, (0, 4)),
        ((3,), 5, (3,)),
    ],
)
def test_which_frames_are_anchors(anchors, frames: int, expected: tuple[int, ...]) -> None:
    assert choose_anchors(anchors, frames) == expected


@given(st.integers(1, 2000), st.data())
@settings(max_examples=200)
def test_anchors_are_distinct_ordered_and_inside(frames: int, data) -> None:
    count = data.draw(st.integers(0, frames))
    chosen = choose_anchors(count, frames)
    assert len(chosen) == count
    assert list(chosen) == sorted(set(chosen))
    assert all(0 <= a < frames for a in chosen)
    assert all(a == math.floor((2 * k + 1) * frames / (2 * count)) for k, a in enumerate(chosen))


@pytest.mark.parametrize(
    ("anchors", "words"),
    [
        (6, "6 anchors are more than the video's 5 frames"),
        ([5], "Anchor 5 is not a frame"),
        ([-1], "Anchor -1"),
        ([1, 1], "twice"),
    ],
)
def test_impossible_anchors_are_refused(anchors, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose_anchors(anchors, 5)


def test_the_bank_hands_out_views_not_copies() -> None:
    from fairy.export.graphs import SelfAttention, anchor_layers, unet_spec

    layers = anchor_layers((SelfAttention("mid_block.a.attn1", 1, 2, 8),), "all")
    graph = unet_spec("unet_anchor", layers, in_channels=8, out_channels=4, text_channels=4)
    bank = AnchorBank.allocate(
        graph,
        num_inference_steps=2,
        branches=3,
        num_anchors=2,
        latent_size=(4, 6),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    target = bank.targets(1)["mid_block.a.attn1.k"]
    assert target.shape == (3, 2, 6, 8)
    target[:] = torch.randn(target.shape)
    context = bank.context(1, torch.float32)["context.0.mid_block.a.attn1.k"]
    assert context.shape == (3, 1, 12, 8)
    assert context.data_ptr() == target.data_ptr()
    assert torch.equal(context.flatten(), target.flatten())
    assert bank.num_bytes == 2 * 2 * 3 * 12 * 8 * 4


# -- parts --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 20), st.data())
@settings(max_examples=200)
def test_every_frame_is_in_exactly_one_part_in_order(frames: int, size: int, data) -> None:
    anchors = frozenset(data.draw(st.lists(st.integers(0, frames - 1), max_size=9)))
    parts = cut_into_parts(frames, anchors, size)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(frames))
    assert [i for part in parts for i in part.frames] == [i for i in range(frames) if i not in anchors]
    assert all(len(part.frames) == size for part in parts[:-1])
    assert len(parts[-1].frames) <= size
    assert all(part.start <= i < part.stop for part in parts for i in part.frames)


@given(st.integers(0, 100))
def test_the_micro_batch_depends_on_the_anchors_alone(anchors: int) -> None:
    assert 1 <= default_micro_batch(anchors) <= 8


# -- parameters ---------------------------------------------------------------------------------------------------


def test_defaults_and_recommendations() -> None:
    params = EditParams("x", num_inference_steps=4).resolved({"long_side": 256, "num_inference_steps": 7, "anchors": 2})
    assert params.num_inference_steps == 4  # what the user says wins
    assert params.long_side == 256  # then what the model recommends
    assert params.anchors == 2
    assert params.guidance_scale == DEFAULTS["guidance_scale"] == 7.5
    assert params.image_guidance_scale == 1.5
    assert params.sampler == "euler_ancestral"


def test_recommendations_are_checked() -> None:
    with pytest.raises(InputError, match="recommends 'colour'"):
        EditParams("x").resolved({"colour": 1})
    with pytest.raises(InputError, match="long_side = -1"):
        EditParams("x").resolved({"long_side": -1})


def test_params_are_frozen_and_hashable() -> None:
    params = EditParams("x", anchors=[2, 1])
    assert params.anchors == (1, 2)
    assert hash(params) == hash(EditParams("x", anchors=(1, 2)))
    with pytest.raises(AttributeError):
        params.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": ""}, "instruction is empty"),
        ({"prompt": " \n"}, "instruction is empty"),
        ({"prompt": None}, "instruction is empty"),
        ({"num_inference_steps": 0}, "num_inference_steps = 0 .* from 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps = 2.5 .* whole"),
        ({"num_inference_steps": True}, "num_inference_steps = True"),
        ({"guidance_scale": -1}, "guidance_scale = -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale = nan"),
        ({"image_guidance_scale": "1"}, "image_guidance_scale = '1'"),
        ({"anchors": -1}, "anchors = -1"),
        ({"anchors": True}, "anchors = True"),
        ({"anchors": "3"}, "anchors = '3'"),
        ({"anchors": [1, 1]}, "twice"),
        ({"anchors": [1.5]}, "neither a number"),
        ({"sampler": "heun"}, "sampler = 'heun'"),
        ({"noise": None}, "noise = None"),
        ({"noise": "own"}, "choose one of shared, per-frame"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": None}, "seed = None"),
        ({"seed": 2**64}, "seed = "),
        ({"long_side": 4}, "long_side = 4"),
        ({"size": "big"}, "choose one of scaled, source"),
        ({"layers": "encoder"}, "choose one of all, decoder"),
        ({"micro_batch": 0}, "micro_batch = 0"),
        ({"start": -1.0}, "start = -1"),
        ({"start": 2.0, "end": 1.0}, "end = 1 s must be later than start = 2 s"),
        ({"upscale": "yes"}, "upscale must be"),
        ({"max_pixels": 0}, "max_pixels = 0"),
    ],
)
def test_impossible_values_are_named(values: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        EditParams(**{"prompt": "x", **values})
    assert "\n" not in str(caught.value)


def test_unknown_options_are_errors() -> None:
    with pytest.raises(TypeError, match="num_steps"):
        EditParams("x", num_steps=3)  # type: ignore[call-arg]
