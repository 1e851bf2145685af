"""Fewer steps: the target is the published one, a stop loses nothing, and what comes of it runs with one branch."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from fairy.export.bases.video_unet import VideoUNet
from fairy.runtime.denoise.sampler import make_schedule, step
from fairy.runtime.generation.generator import Generator
from fairy.runtime.generation.networks import CascadeNetworks
from fairy.runtime.generation.params import GenerateParams
from tests.runtime.generation.conftest import base_network, shaken, write_generator
from training import distillation
from training.compute import Compute
from training.distillation import (
    Distilled,
    DistilPlan,
    Levels,
    distil,
    guided,
    student_of,
    times_of,
    two_step_target,
    write_distilled,
)
from training.generator import alphas_cumprod, build_tokenizer
from training.package_generator import SCHEDULE
from training.text import WIDTH, build_text_encoder

LEVELS = Levels(alphas_cumprod().double())


def network() -> VideoUNet:
    made = base_network(block_out_channels=(8, 16), cross_attention_dim=WIDTH, attention_head_dim=8, norm_num_groups=4)
    shaken(made, 0)
    return made


@pytest.mark.parametrize("steps", [4, 8, 16])
def test_one_step_to_the_target_is_the_teachers_two(steps: int) -> None:
    """The sampler's own DDIM steps, at every time that the student's sampling visits."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    once = make_schedule("ddim", SCHEDULE | {"prediction_type": "sample", "clip_sample": False}, steps)
    stride = 1000 // steps
    assert sorted(once.timesteps) == times_of(steps).tolist()

    def teacher(noisy: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        return torch.tanh(noisy) * (1 - time_B.view(-1, 1, 1, 1, 1) / 2000)

    for i, time_ in enumerate(once.timesteps):
        now = torch.tensor([int(time_)])
        target = two_step_target(teacher, LEVELS, z, now, stride)
        middle = now - stride // 2
        half = step_between(z, teacher(z, now), now, middle)
        wanted = step_between(half, teacher(half, middle.clamp(min=0)), middle, now - stride)
        found = step_between(z, target, now, now - stride)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        if now < stride:
            torch.testing.assert_close(target, teacher(half, middle.clamp(min=0)), rtol=1e-9, atol=1e-9)
        # the schedule that samples keeps alphas in float32
        torch.testing.assert_close(step(once, i, z, target, None), wanted, rtol=1e-4, atol=1e-4)


def step_between(z: torch.Tensor, x: torch.Tensor, now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    """DDIM in the angle of the noise: z' = cos φ'·x + sin φ'·ε."""
    a, b = (torch.arccos(LEVELS.at(t, z).clamp(max=1).sqrt()) for t in (now, then))
    return torch.cos(b) * x + torch.sin(b) * (z - torch.cos(a) * x) / torch.sin(a)


def test_a_new_student_predicts_as_its_teacher_without_guidance() -> None:
    teacher = network()
    student = student_of(teacher).eval()
    z, text = torch.randn(2, 3, 4, 16, 16), torch.randn(2, 5, WIDTH)
    fps, scale, now = torch.full((2,), 4.0), torch.full((2,), 3.0), torch.tensor([300, 900])
    with torch.inference_mode():
        found = guided(student, text, torch.zeros_like(text), fps, scale)(z, now)
        assert torch.equal(found, teacher(z, now.float(), text, fps=fps))
        apart = guided(teacher, text, torch.zeros_like(text), fps, scale)(z, now)
        none = teacher(z, now.float(), torch.zeros_like(text), fps=fps)
    torch.testing.assert_close(apart, none + 3 * (found - none), rtol=1e-4, atol=1e-4)


def trained(path: Path, teacher: VideoUNet, encoder: torch.nn.Module, stops: tuple[int, ...]) -> Distilled:
    """A student after a plan of four steps, stopped after so many at a time."""
    plan = DistilPlan(4, clips=1, halving=8)
    for more in stops:
        torch.manual_seed(0)
        student = Distilled(student_of(teacher), encoder)
        ticks = itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distillation.time, "monotonic", lambda ticks=ticks: next(ticks))
            distil(plan, student, teacher, path, Compute.best(), seed=1, deadline=more)
    return student


def test_training_starts_and_what_it_writes_runs_with_one_branch(tmp_path: Path) -> None:
    folder = write_generator(tmp_path / "generator")
    networks = CascadeNetworks(folder, torch.device("cpu"), torch.float32)
    student = student_of(networks.model.network("base").float())
    write_distilled(folder, student, 2, tmp_path / "distilled")
    told = json.loads((tmp_path / "distilled" / "cascade.json").read_text())["stages"][0]
    assert told["num_inference_steps"] == 2
    calls: list[int] = []
    with Generator.from_pretrained(tmp_path / "distilled") as generator:
        base = generator._networks.model.network("base")
        base.register_forward_pre_hook(lambda _n, inputs: calls.append(len(inputs[0])))
        made = generator.generate(GenerateParams("a red ball", num_frames=4, fps=4, size=16))
    assert calls == [1, 1]
    assert made.report.params["guidance_scale"] == 3.0


def test_a_stopped_distillation_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, teacher = build_text_encoder(build_tokenizer()).eval(), network()
    whole = trained(tmp_path / "whole.safetensors", teacher, encoder, (9,)).unet.state_dict()
    parts = trained(tmp_path / "parts.safetensors", teacher, encoder, (2, 9)).unet.state_dict()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    first = student_of(teacher).state_dict()
    assert any(not torch.equal(value, first[name]) for name, value in whole.items())
