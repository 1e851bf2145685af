"""`keep_details`: what the autoencoder loses comes from the source, and what an edit hardly changes is left alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.runtime import Editor, EditParams
from fairy.runtime.denoise.denoiser import Denoiser
from fairy.runtime.denoise.details import kept_details
from fairy.runtime.denoise.networks import Networks
from fairy.runtime.plan.identity import identity_of
from fairy.runtime.record.progress import Monitor
from tests.runtime.conftest import make_frames

FRAMES = make_frames(5, 52, 70)  # no multiple of anything


def make_params(**changes: object) -> EditParams:
    usual = {"num_inference_steps": 2, "anchors": 2, "micro_batch": 2, "keep_details": True}
    return EditParams("make it red", **{**usual, **changes})


def texture(seed: int, strength: float, height: int = 40, width: int = 56) -> torch.Tensor:
    """Fine detail around 0: [1, 3, height, width]."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return noise * strength


def flat(level: float) -> torch.Tensor:
    return torch.full((1, 3, 40, 56), level)


def result(source: torch.Tensor, edited: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    return source + kept_details(source, edited, restored)[0]


def test_an_edit_that_changes_nothing_gives_the_source() -> None:
    source, restored = flat(100) + texture(0, 20), flat(100) + texture(1, 10)
    change, share = kept_details(source, restored, restored)
    assert not change.any()
    assert (share == 1).all()


def test_a_slight_change_gives_the_source_too() -> None:
    source, restored = flat(100) + texture(0, 20), flat(100) + texture(1, 10)
    assert torch.equal(result(source, restored + 7, restored), source)


@pytest.mark.parametrize("gain", [1.0, 0.5, -1.0])
def test_details_return_as_far_as_the_edit_shows_them(gain: float) -> None:
    """All in another colour, half of them at night, the opposite in a negative."""
    kept, lost = texture(0, 15), texture(1, 6)
    restored, source = flat(120) + kept, flat(120) + kept + lost
    edited, wanted = flat(60) + gain * kept, flat(60) + gain * (kept + lost)
    before, after = ((x - wanted).square().mean() for x in (edited, result(source, edited, restored)))
    assert after < 0.02 * before


def test_what_is_gone_does_not_shine_through() -> None:
    kept, lost = texture(0, 15), texture(1, 6)
    restored, source, edited = flat(120) + kept, flat(120) + kept + lost, flat(60)
    assert (result(source, edited, restored) - edited).abs().mean() < 0.05 * lost.abs().mean()


def test_only_what_changes_changes() -> None:
    restored, source = flat(120) + texture(0, 10), flat(120) + texture(0, 10) + texture(1, 6)
    edited = restored.clone()
    edited[..., :28] += 80
    mended = result(source, edited, restored)
    assert torch.equal(mended[..., 48:], source[..., 48:])
    assert (mended[..., :8] - source[..., :8] - 80).abs().mean() < 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (41, 2)])
def test_pictures_of_any_size(shape: tuple[int, int]) -> None:
    source, edited, restored = (texture(seed, 60, *shape) for seed in range(3))
    change, share = kept_details(source, edited, restored)
    assert change.shape == share.shape == source.shape
    assert torch.isfinite(change).all()


@pytest.mark.parametrize("changes", [{}, {"long_side": 48}, {"long_side": 48, "size": "source"}, {"anchors": 0}])
def test_a_zero_edit_gives_the_bytes_of_the_source(
    editor: Editor, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    """The edited latents are the source's own."""
    factor = editor._networks.checkpoint.vae.config.scaling_factor
    monkeypatch.setattr(Denoiser, "run", lambda self, graph, calls, latents, beside, *_, **__: beside.float() * factor)
    params = make_params(**changes)
    run = editor._open(FRAMES, params, Monitor(None, None), None, None)
    wanted = editor._networks.source_like_result(run, list(FRAMES))
    assert np.array_equal(editor.edit(FRAMES, params).frames, wanted)


def test_off_is_the_usual_edit(editor: Editor) -> None:
    usual, off, on = (editor.edit(FRAMES, make_params(keep_details=k)).frames for k in (False, False, True))
    assert np.array_equal(usual, off)
    assert not np.array_equal(usual, on)


@pytest.mark.parametrize("method", ["per_frame", "pix2video"])
def test_with_every_method(editor: Editor, method: str) -> None:
    changes = {"method": method, "anchors": None, "micro_batch": None}
    usual, kept = (editor.edit(FRAMES, make_params(**changes, keep_details=k)).frames for k in (False, True))
    assert usual.shape == kept.shape
    assert not np.array_equal(usual, kept)


def test_a_frame_is_decoded_twice_and_encoded_once(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"_decoded": 0, "_network_input": 0}
    for name in counts:
        really = getattr(Networks, name)

        def counted(self, *args, name=name, really=really):
            counts[name] += 1
            return really(self, *args)

        monkeypatch.setattr(Networks, name, counted)
    editor.edit(FRAMES, make_params())
    assert counts == {"_decoded": 2 * len(FRAMES), "_network_input": len(FRAMES)}


def test_it_is_part_of_an_edits_identity(editor: Editor, clip: Path) -> None:
    def identity(keep: bool) -> dict:
        run = editor._open(str(clip), make_params(keep_details=keep), Monitor(None, None), None, None)
        return identity_of(
            run.plan, checkpoint=editor._networks.checkpoint, backend="eager", engines=[], device=torch.device("cpu"),
            threads=1,
        )  # fmt: skip

    assert identity(True) != identity(False)
