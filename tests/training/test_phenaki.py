"""Training of Phenaki's two networks: goes on to the same weights, draws what it says, writes what can be loaded."""

import math
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.runtime.generation.phenaki_networks import PhenakiNetworks
from tests.training.test_resume import assert_same, time_for
from training import phenaki, phenaki_tokenizer
from training.compute import Compute
from training.package_phenaki import write_storyteller
from training.phenaki import PhenakiPlan, TextToCodes, draw_batch
from training.phenaki_tokenizer import TokenizerPlan, build_tokenizer, decibels, evaluate, loss_of
from training.story_clips import NOTHING

CPU = Compute()
TOKENIZER = TokenizerPlan(steps=4, clips=1, frames=5)
TRANSFORMER = PhenakiPlan(steps=4, clips=2)


@pytest.mark.slow
def test_both_trainings_go_on_to_the_same_weights_and_are_packaged(tmp_path: Path) -> None:
    for name, times in (("whole", (4,)), ("broken", (1, 3))):
        path = tmp_path / name / phenaki_tokenizer.FILE
        for steps in times:
            with time_for(steps):
                phenaki_tokenizer.train(TOKENIZER, path, CPU, seed=1, deadline=1.0)
        tokenizer = phenaki_tokenizer.load_tokenizer(path)
        for steps in times:
            with time_for(steps):
                phenaki.train(TRANSFORMER, tokenizer, path.with_name(phenaki.FILE), CPU, seed=1, deadline=1.0)
    for file in (phenaki_tokenizer.FILE, phenaki.FILE):
        assert_same(tmp_path / "whole" / file, tmp_path / "broken" / file)
    write_storyteller(tmp_path / "model", tmp_path / "whole")
    networks = PhenakiNetworks(tmp_path / "model", torch.device("cpu"), torch.float32)
    assert (networks.model.fps, networks.model.frames, networks.model.frames_before) == (8, 4, 3)
    weights = sum(p.numel() for n in (networks._video_tokenizer, networks._transformer) for p in n.parameters())
    assert weights < 25e6


@pytest.mark.slow
def test_a_batch_hides_new_codes_alone_and_is_a_function_of_its_step() -> None:
    torch.manual_seed(0)
    tokenizer, words = build_tokenizer().eval(), TextToCodes().tokenizer
    starts, shares = set(), []
    for step in range(12):
        batch = draw_batch(replace(TRANSFORMER, drop=0.5), tokenizer, words, CPU, 0, step)
        assert batch.codes.shape[1] == batch.start + batch.is_masked.shape[1]
        assert batch.is_masked.flatten(1).any(dim=1).all()
        assert (batch.told != NOTHING).any(dim=1).tolist() == [int(t) != words.eos_token_id for t in batch.tokens[:, 1]]
        starts.add(batch.start)
        shares += batch.is_masked.flatten(1).float().mean(dim=1).tolist()
    again = draw_batch(replace(TRANSFORMER, drop=0.5), tokenizer, words, CPU, 0, 11)
    assert torch.equal(again.codes, batch.codes)
    assert torch.equal(again.is_masked, batch.is_masked)
    assert len(starts) > 3
    assert 0.4 < np.mean(shares) < 0.85  # 2/π in the mean


def test_errors_count_more_where_something_stands_out() -> None:
    video = torch.zeros(1, 3, 1, 8, 8)
    video[..., 2:4, 3:5] = 1.0
    on_thing, beside = video.clone(), video.clone()
    on_thing[..., 2, 3] += 0.1
    beside[..., 6, 6] += 0.1
    assert loss_of(on_thing, video, 4.0) == pytest.approx(4 * float(loss_of(beside, video, 4.0)))
    assert loss_of(beside, video, 1.0) == pytest.approx(float((beside - video).square().mean()))


def test_masked_shares_follow_the_cosine() -> None:
    masks = phenaki._masks(np.random.default_rng(0), (4000, 2, 8, 8)).flatten(1).float().mean(dim=1)
    assert abs(float(masks.mean()) - 2 / math.pi) < 0.02
    assert abs(float((masks < math.cos(math.pi / 4)).float().mean()) - 0.5) < 0.03


def test_decibels_and_use_of_codes_are_measured() -> None:
    torch.manual_seed(0)
    figures = evaluate(build_tokenizer().eval(), stories=1, frames=3)
    of_frames = build_tokenizer(per_frame=True).eval()
    assert prod(of_frames.grid) == prod(build_tokenizer().grid) / 2
    assert 0 < evaluate(of_frames, stories=1, frames=3, per_frame=True)["dB"] < 20
    assert 0 < figures["dB"] < 20
    assert 1 <= figures["perplexity"] <= figures["codes used"] <= figures["codes"] == 1000
    assert decibels(255**2 / 1000) == pytest.approx(30)
