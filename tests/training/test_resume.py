"""A stage that was interrupted ends with the same weights as one that was not."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, pairwise, repeat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.autoencoder import AutoencoderPlan, DecoderPlan, build_autoencoder, train_autoencoder, train_decoder
from training.checkpoint import Trainee, learning_rate, read_notes
from training.compute import Compute
from training.editor import EditorPlan, train_editor
from training.latents import Pairs, PairsPlan, load_pairs
from training.optimisers import adamw
from training.tiny_decoder import build_tiny_decoder, distillation_loss, train_tiny_decoder

pytestmark = pytest.mark.slow


CPU = Compute()


def assert_same(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:5]
    assert read_notes(first) == read_notes(second)


@contextmanager
def time_for(steps: int) -> Iterator[None]:
    """Within it, the time is up after so many steps (deadline 1.0)."""
    clock = chain([0.0] * steps, repeat(math.inf))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(clock))
        yield


def test_autoencoder(tmp_path: Path) -> None:
    plan = AutoencoderPlan(steps=4, crops=((32, 2), (48, 1)), pictures=3)
    train_autoencoder(plan, tmp_path / "whole", CPU, seed=3, deadline=math.inf)
    for steps in (2, 2):
        with time_for(steps):
            train_autoencoder(plan, tmp_path / "broken", CPU, seed=3, deadline=1.0)
    assert_same(tmp_path / "whole/autoencoder.safetensors", tmp_path / "broken/autoencoder.safetensors")


def test_decoder_stage_leaves_the_latents_alone(tmp_path: Path) -> None:
    train_autoencoder(AutoencoderPlan(steps=1, crops=((32, 2),), pictures=2), tmp_path, CPU, seed=0, deadline=math.inf)
    for steps in (1, 2):
        plan = DecoderPlan(steps=steps, crops=((32, 2),), pictures=2)
        train_decoder(plan, tmp_path, CPU, seed=0, deadline=math.inf)
    before, after = load_file(tmp_path / "autoencoder.safetensors"), load_file(tmp_path / "decoder.safetensors")
    changed = {n.removeprefix("average/") for n in before if n in after and not torch.equal(before[n], after[n])}
    changed = {name for name in changed if not name.startswith(("weights/", "optimiser/"))}
    assert any(name.startswith("decoder.") for name in changed)
    assert not [name for name in changed if name.startswith(("encoder.", "quant_conv."))]


def test_tiny_decoder(tmp_path: Path) -> None:
    model = build_autoencoder()
    teacher = tmp_path / "teacher.safetensors"
    Trainee.start(model, adamw(model, 1e-3)).save(teacher)
    plan = DecoderPlan(steps=4, crops=((32, 2), (48, 1)), pictures=3)
    options = {"autoencoder": teacher, "scaling_factor": 0.5, "seed": 3}
    train_tiny_decoder(plan, tmp_path / "whole", CPU, **options, deadline=math.inf)
    for steps in (2, 2):
        with time_for(steps):
            train_tiny_decoder(plan, tmp_path / "broken", CPU, **options, deadline=1.0)
    assert_same(tmp_path / "whole/tiny_decoder.safetensors", tmp_path / "broken/tiny_decoder.safetensors")


def test_tiny_decoder_learns_its_teachers_pictures() -> None:
    """A step along the loss's gradient brings the two decoders' pictures closer; none moves the teacher."""
    torch.manual_seed(0)
    teacher, model = build_autoencoder().requires_grad_(False), build_tiny_decoder()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    z = teacher.encode(x).latent_dist.mode()
    wanted = teacher.decode(z).sample.clamp(-1, 1)
    before = (model.decode(z * 0.7).sample - wanted).square().mean()
    for _ in range(20):
        loss = distillation_loss(model, teacher, 0.7, x, 0.0, torch.Generator().manual_seed(0))
        torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter -= 0.02 * (parameter.grad if parameter.grad is not None else 0)
                parameter.grad = None
    after = (model.decode(z * 0.7).sample - wanted).square().mean()
    assert after < 0.8 * before, (before, after)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    cache = tmp_path_factory.mktemp("pairs") / "latents.safetensors"
    plan = PairsPlan(scenes=1, edits=3)
    torch.manual_seed(0)
    made = load_pairs(cache, plan, build_autoencoder(), 0, "x")
    torch.testing.assert_close(load_pairs(cache, plan, build_autoencoder(), 0, "x").target, made.target)
    return made


def test_editor(tmp_path: Path, pairs: Pairs) -> None:
    plan = EditorPlan(steps=4, crops=((8, 2), (16, 1)))
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    train_editor(plan, pairs, whole, CPU, seed=0, deadline=math.inf)
    for steps in (1, 3):
        with time_for(steps):
            train_editor(plan, pairs, broken, CPU, seed=0, deadline=1.0)
    assert_same(whole, broken)


def test_equivariant_stage_starts_from_the_editor(tmp_path: Path, pairs: Pairs) -> None:
    plan = EditorPlan(steps=1, crops=((8, 2),))
    first, second = tmp_path / "editor.safetensors", tmp_path / "equivariant.safetensors"
    train_editor(plan, pairs, first, CPU, seed=0, deadline=math.inf)
    train_editor(replace(plan, steps=0), pairs, second, CPU, seed=9, deadline=math.inf, start=first)
    a, b = load_file(first), load_file(second)
    assert all(torch.equal(a[f"average/{k[8:]}"], v) for k, v in b.items() if k.startswith("weights/"))


def test_a_partial_checkpoint_never_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(2, 2)
    trainee = Trainee.start(layer, adamw(layer, 1e-3))
    path = tmp_path / "linear.safetensors"
    trainee.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("training.checkpoint.os.replace", _fail)
    with pytest.raises(OSError, match="full"):
        trainee.save(path)
    assert path.read_bytes() == before


def _fail(*_: object) -> None:
    raise OSError("disk full")


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(1.0, step, 1000) for step in range(1000)]
    assert (rates[0], rates[300]) == (1 / 50, 1.0)
    assert rates[-1] < 0.03
    assert all(b <= a for a, b in pairwise(rates[600:]))
