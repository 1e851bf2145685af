"""The UNet over windows of frames: identity over time at first, tiles, and windows of any length."""

import pytest
import torch

from fairy.export.bases.video_unet import TemporalConv, VideoUNet, _warped

HOW = {"block_out_channels": (16, 24), "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 8}


def network(**changes: object) -> VideoUNet:
    """Random weights everywhere but in the layers over time, which are new."""
    torch.manual_seed(0)
    made = VideoUNet(**{**HOW, **changes})
    for name, parameter in made.named_parameters():
        if ".temporal." not in name and not name.startswith("fps."):
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return made.eval()


@torch.inference_mode()
@pytest.mark.parametrize("groups", [8, 0])
def test_new_layers_over_time_give_the_picture_models_bytes(groups: int) -> None:
    video, x = network(norm_num_groups=groups), torch.randn(2, 3, 5, 16, 16)
    pictures = network(norm_num_groups=groups, temporal=False)
    pictures.load_state_dict({k: v for k, v in video.state_dict().items() if ".temporal." not in k})
    time, text, fps = torch.tensor([3.0, 700.0]), torch.randn(2, 6, 16), torch.tensor([4.0, 8.0])
    over_time = video(x, time, text, fps=fps)
    assert torch.equal(over_time, pictures(x, time, text, fps=torch.zeros(2)))
    assert torch.equal(over_time, video(x, time, text, fps=fps, enable_time=False))


@torch.inference_mode()
def test_trained_layers_over_time_mix_frames_and_their_switch_leaves_them_out() -> None:
    video, x = network(), torch.randn(1, 3, 4, 16, 16)
    text, time, fps = torch.randn(1, 6, 16), torch.tensor([500.0]), torch.tensor([4.0])
    for name, parameter in video.named_parameters():
        if ".temporal." in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    moved = x.clone()
    moved[:, :, 3] += 1
    first = [video(clip, time, text, fps=fps)[:, :, 0] for clip in (x, moved)]
    alone = [video(clip, time, text, fps=fps, enable_time=False)[:, :, 0] for clip in (x, moved)]
    assert not torch.equal(*first)
    assert torch.equal(*alone)


@torch.inference_mode()
def test_the_convolution_over_time_is_conv3d() -> None:
    layer, x = TemporalConv(6), torch.randn(2, 6, 5, 4, 3, dtype=torch.float64)
    layer.double()
    torch.nn.init.normal_(layer.conv.weight)
    made = layer(x.transpose(1, 2).flatten(0, 1), 5).unflatten(0, (2, 5)).transpose(1, 2)
    wanted = torch.nn.functional.conv3d(x, layer.conv.weight[..., None], layer.conv.bias, padding=(1, 0, 0))
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_rate_and_noise_level_are_seen_once_they_are_learned() -> None:
    video, x = network(), torch.randn(1, 3, 4, 16, 16)
    text, time = torch.randn(1, 6, 16), torch.tensor([500.0])
    for layer in (video.fps[-1], video.noise_level[-1]):
        torch.nn.init.normal_(layer.weight)
    slow, fast = (video(x, time, text, fps=torch.tensor([rate])) for rate in (4.0, 8.0))
    noisy = video(x, time, text, fps=torch.tensor([4.0]), noise_level=torch.tensor([0.3]))
    assert not torch.allclose(slow, fast)
    assert not torch.allclose(slow, noisy)


@torch.inference_mode()
def test_a_flow_moves_the_outer_frames() -> None:
    first, last = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    raw, half = torch.zeros(1, 5, 4, 4), torch.full((1, 1, 8, 8), 0.5)
    ends = torch.cat([first, last], dim=1)
    torch.testing.assert_close(_warped(ends, raw, half), (first + last) / 2)
    raw[:, 0] = 1.0  # of the first level's places, which are two pixels wide
    moved = _warped(ends, raw, half)
    torch.testing.assert_close(moved[..., :6], (first[..., 2:] + last[..., :6]) / 2)
    for place, frame in ((0.0, first), (1.0, last)):
        torch.testing.assert_close(_warped(ends, raw, torch.full((1, 1, 8, 8), place)), frame)
