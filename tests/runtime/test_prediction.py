"""Denoising with the compiled path's steps: whole jobs over several steps equal eager's but for rounding."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fairy.engines.compiled import CompiledBackend
from fairy.engines.eager import EagerBackend
from fairy.engines.engine import Backend
from fairy.export.bases.fast_unet import FastUNet
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.graphs import GraphSpec
from fairy.export.steps import ALL_STEPS, STEPS
from fairy.kernels.errors import InputError
from fairy.kernels.guidance_step import guidance_step_reference
from fairy.runtime import Editor, EditParams, embedded_model
from fairy.runtime.cli import main as cli
from fairy.runtime.denoise.guidance import branch_image, guide, make_guidance
from fairy.runtime.denoise.networks import Networks
from fairy.runtime.denoise.prediction import Ahead, Pictures, first_step, step_coefficients
from fairy.runtime.denoise.sampler import SAMPLERS, make_schedule, needs_noise, step
from fairy.runtime.denoise.segment_edit import SegmentEdit
from fairy.runtime.plan.plan import plan_edit
from fairy.runtime.plan.tasks import anchor_task, frame_task
from fairy.runtime.record.progress import Monitor
from fairy.runtime.record.run import Run
from tests.conftest import SCHEDULER, write_checkpoint

CPU = torch.device("cpu")
STEPS_OF_A_JOB = 3
FRAMES = 6
ON_CPU = [s.name for s in STEPS if s.exact and "cpu" in s.devices and s.name != "inductor"]


def _backend(checkpoint: Checkpoint, *, only: str | None = None, without: tuple[str, ...] = ()) -> CompiledBackend:
    """The compiled path, not compiled: with one step alone, or with all but some."""
    off = ["inductor", *without] if only is None else [s.name for s in STEPS if s.name != only]
    return CompiledBackend(checkpoint, CPU, torch.float32, without=off)


def _run(checkpoint: Checkpoint, anchors: int, precision: torch.dtype, **changes: object) -> Run:
    frames = np.random.default_rng(7).integers(0, 256, (FRAMES, 32, 64, 3), np.uint8)
    params = EditParams(
        "make it sepia", num_inference_steps=STEPS_OF_A_JOB, anchors=anchors, seed=3, guidance_scale=5.0,
        image_guidance_scale=1.5, sampler="euler_ancestral", long_side=64, **changes,
    )  # fmt: skip
    monitor = Monitor(None, None)
    return Run.of(plan_edit(checkpoint, frames, params, monitor, latents=None, precision=precision), monitor)


def _latents(
    checkpoint: Checkpoint, backend: Backend, anchors: int, precision: torch.dtype, **changes: object
) -> Tensor:
    """The latents of anchors and frames after all steps, from image latents and text that are the same for all."""
    networks, run = Networks(checkpoint, backend, CPU), _run(checkpoint, anchors, precision, **changes)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(FRAMES, *run.plan.latent_shape, generator=generator)
    rows = {b: torch.randn(16, checkpoint.text_channels, generator=generator) for b in (0, 1)}
    text = torch.stack([rows[min(b, 1)] for b in run.plan.guidance.branches]).to(precision)
    (segment,) = run.plan.segments
    edit, steps, found = SegmentEdit(networks, run, segment, text=text), len(run.plan.schedule), []
    others = tuple(f for f in range(FRAMES) if f not in segment.anchors)
    tasks = [anchor_task(segment, steps)] if segment.anchors else []
    for part in filter(None, (others[:3], others[3:])):  # the second may have to be filled up
        tasks.append(frame_task(part, steps, anchors=bool(segment.anchors)))
    for task in tasks:
        noise = edit.noise.initial(task.frames)
        edit.begin_with(task.frames, noise.expand(len(task.frames), *noise.shape[1:]), image[list(task.frames)])
        edit.compute(task)
        found.append(edit.latents(task.frames))
    backend.close()
    return torch.cat(found)


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    return load_checkpoint(embedded_model())


@pytest.fixture(scope="module")
def exact(embedded: Checkpoint) -> Callable[..., Tensor]:
    """Eager's latents with the network in float64, and eager's own float32 ones, by number of anchors."""
    known: dict[tuple[object, ...], Tensor] = {}

    def latents(anchors: int, precision: torch.dtype, **changes: object) -> Tensor:
        key = (anchors, precision, *changes.items())
        if key not in known:
            known[key] = _latents(embedded, EagerBackend(embedded, CPU, torch.float32), anchors, precision, **changes)
        return known[key]

    return latents


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def _check(
    checkpoint: Checkpoint, backend: CompiledBackend, exact: Callable[..., Tensor], anchors: int, **changes: object
) -> None:
    wide, eager = exact(anchors, torch.float64, **changes), exact(anchors, torch.float32, **changes)
    found = _latents(checkpoint, backend, anchors, torch.float32, **changes)
    assert found.shape == wide.shape
    assert _error(found, wide) < 5 * _error(eager, wide) + 2e-7, (_error(found, wide), _error(eager, wide))


@pytest.mark.parametrize("anchors", [0, 2])
@pytest.mark.parametrize("only", ON_CPU)
def test_a_step_alone_changes_nothing_beyond_rounding(
    only: str, anchors: int, embedded: Checkpoint, exact: Callable[..., Tensor]
) -> None:
    _check(embedded, _backend(embedded, only=only), exact, anchors)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"noise": "per-frame"},
        {"layers": "decoder"},
    ],
    ids=str,
)
def test_all_steps_together(changes: dict[str, object], embedded: Checkpoint, exact: Callable[..., Tensor]) -> None:
    _check(embedded, _backend(embedded), exact, 2, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("anchors", [0, 2, 6])
def test_all_steps_in_sd15s_layout(anchors: int, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "model"))

    def exact(anchors: int, precision: torch.dtype) -> Tensor:
        return _latents(checkpoint, EagerBackend(checkpoint, CPU, torch.float32), anchors, precision)

    _check(checkpoint, _backend(checkpoint), exact, anchors)


def test_what_is_shared_is_computed_once(embedded: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples through the network: the third branch of the first step is one sample for the whole job."""
    counted: list[int] = []
    forward = FastUNet.forward

    def counting(self: FastUNet, inputs: dict[str, Tensor], spec: GraphSpec) -> tuple[Tensor, ...]:
        counted.append(inputs["sample"].shape[0] * inputs["sample"].shape[1])
        return forward(self, inputs, spec)

    monkeypatch.setattr(FastUNet, "forward", counting)
    samples = {}
    for name, without in (("plain", ("shared-first-step",)), ("shared", ())):
        counted.clear()
        _latents(embedded, _backend(embedded, without=(*without, "shared-first-block")), 2, torch.float32)
        samples[name] = sum(counted)
    frames = 2 + 3 + 3  # the anchors, a micro-batch, and one that is filled up
    assert samples["plain"] == 3 * STEPS_OF_A_JOB * frames
    assert samples["shared"] == samples["plain"] - frames + 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scales", [(7.5, 1.5), (1.25, 1.0), (1.5, 1.5), (7.5, 1.5, 1.0, 2)])
def test_coefficients_are_the_samplers_own_rule(sampler: str, prediction: str, scales: tuple[float, ...]) -> None:
    config = {**SCHEDULER, "prediction_type": prediction, "clip_sample": False}
    if sampler == "flow_match_euler":
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": prediction == "sample"}
    schedule, guidance = make_schedule(sampler, config, 5), make_guidance(*scales)
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, 4, 3, 5, generator=generator) for _ in range(2))
    outputs = torch.randn(guidance.groups, 2, 4, 3, 5, generator=generator)
    for i, row in enumerate(step_coefficients(schedule, guidance)):
        fresh = noise if needs_noise(schedule, i) else None
        expected = step(schedule, i, x.double(), guide(guidance.at(i), outputs).double(), fresh)
        found = guidance_step_reference(outputs, x, fresh, torch.tensor([row]))
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("steps", [frozenset(), frozenset({"static-input"}), ALL_STEPS - {"shared-first-block"}])
@pytest.mark.parametrize("scales", [(7.5, 1.5), (1.25, 1.0), (1.5, 1.5), (0.0, 0.0)])
def test_pictures_are_the_latents_beside_the_image(steps: frozenset[str], scales: tuple[float, float]) -> None:
    guidance = make_guidance(*scales)
    image = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    pictures = Pictures(guidance, image, steps)
    shared = Pictures(guidance, image, steps | {"shared-first-block"})
    seen = []
    for seed in (1, 2):
        latents = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(seed))
        beside = branch_image(guidance, image)
        expected = torch.cat([latents.expand(guidance.groups, -1, -1, -1, -1), beside], 2)
        found = pictures(latents)
        assert torch.equal(found, expected)
        assert torch.equal(shared(latents), expected[1:] if guidance.branches[:2] == (0, 1) else expected)
        seen.append(found.data_ptr())
    assert (seen[0] == seen[1]) == ("static-input" in steps)


def test_the_first_step_is_shared_only_where_it_may_be() -> None:
    def may(steps: frozenset[str], scales: tuple[float, float], starts: int) -> bool:
        return first_step(steps, make_guidance(*scales), starts == 1, lambda: None, Ahead()) is not None

    assert may(ALL_STEPS, (7.5, 1.5), 1)
    assert not may(ALL_STEPS - {"shared-first-step"}, (7.5, 1.5), 1)
    assert not may(ALL_STEPS, (7.5, 1.5), 3)  # every frame has noise of its own
    assert not may(ALL_STEPS, (7.5, 1.0), 1)  # the branch without picture weighs nothing
    assert not may(ALL_STEPS, (0.0, 0.0), 1)  # it is the only one


def test_an_edit_names_its_steps_and_equals_eagers(embedded: Checkpoint) -> None:
    frames = np.random.default_rng(5).integers(0, 256, (4, 32, 48, 3), np.uint8)
    params = EditParams("make it sepia", num_inference_steps=2, anchors=2, image_guidance_scale=1.5)
    with Editor.from_pretrained(device="cpu", backend="eager") as editor:
        expected = editor.edit(frames, params)
    assert expected.report.steps == ()
    with Editor.from_pretrained(device="cpu", backend="compiled", without=("inductor", "fused-qkv")) as editor:
        found = editor.edit(frames, params)
    assert found.report.steps == tuple(name for name in ON_CPU if name != "fused-qkv")
    assert np.abs(found.frames.astype(int) - expected.frames).max() <= 1
    assert found.report.backend == "compiled"


@pytest.mark.slow
def test_workers_give_the_same_bytes_and_name_the_same_steps() -> None:
    """What is computed once a job is computed once in every worker, in the same shape."""
    frames = np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), np.uint8)
    params = EditParams("make it sepia", num_inference_steps=2, anchors=2, image_guidance_scale=1.5)
    found = []
    for workers in (1, 2):
        how = {"device": "cpu", "backend": "compiled", "without": ("inductor",), "workers": workers}
        with Editor.from_pretrained(**how) as editor:
            found.append(editor.edit(frames, params))
    one, two = found
    assert np.array_equal(one.frames, two.frames)
    assert one.report.steps == two.report.steps == tuple(ON_CPU)
    assert two.report.workers == 2


def test_wrong_steps_are_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="without = 'qkv' is no step; choose from one-batch, .*fused-qkv"):
        Editor.from_pretrained(device="cpu", backend="compiled", without=("qkv",))
    with pytest.raises(InputError, match="Backend 'eager' has no steps to leave out; choose one of compiled"):
        Editor.from_pretrained(device="cpu", backend="eager", without=("fused-qkv",))


def test_the_command_line_leaves_steps_out(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    words = ["edit", str(clip), "make it red", "-o", str(out), "--steps", "1", "--anchors", "2", "--quiet"]
    words += ["--device", "cpu", "--long-side", "32", "--backend", "compiled", "--report", str(report)]
    assert cli.run([*words, "--without", "inductor", "--without", "one-batch"]) == 0
    assert json.loads(report.read_text())["steps"] == [name for name in ON_CPU if name != "one-batch"]
    capsys.readouterr()
    assert cli.run([*words, "--without", "speed"]) == 2
    assert capsys.readouterr().err.startswith("error: --without 'speed' is no step; choose from one-batch, ")
