"""Strength: an edit that begins inside the schedule, as in diffusers, and that may change from frame to frame."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.plan.segments import first_step, plan_segments
from fairy.runtime.plan.story import read_prompts
from fairy.runtime.record.progress import Monitor
from tests.conftest import SCHEDULER
from tests.runtime.conftest import make_frames

FRAMES = make_frames(7, 64, 64)
SNOW = "make it snow"


def params(**changes: object) -> EditParams:
    return EditParams(SNOW, **{"num_inference_steps": 4, "anchors": 2, "micro_batch": 2, "seed": 3, **changes})


def through_the_autoencoder(editor: Editor, frames: np.ndarray = FRAMES) -> np.ndarray:
    networks = editor._networks
    run = editor._open(frames, params(anchors=0), Monitor(None, None), None, None)
    with torch.inference_mode():
        return np.stack(networks.decode(run, networks.as_edited(networks.encode(run, list(frames)))))


def test_guidance_that_oscillates_is_the_editors_too(editor: Editor) -> None:
    """The low scale counts at every second step, after those that pull fully; by Pix2Video's rule as well."""
    constant = editor.edit(FRAMES, params()).frames
    assert np.array_equal(constant, editor.edit(FRAMES, params(guidance_low=7.5)).frames)
    assert np.array_equal(constant, editor.edit(FRAMES, params(guidance_low=1.0, guidance_high_steps=4)).frames)
    low = editor.edit(FRAMES, params(guidance_low=1.0)).frames
    assert not np.array_equal(constant, low)
    assert not np.array_equal(low, editor.edit(FRAMES, params(guidance_low=1.0, guidance_high_steps=1)).frames)
    by_units = {"anchors": None, "method": "pix2video", "sampler": "ddim"}
    assert not np.array_equal(
        editor.edit(FRAMES, params(**by_units)).frames, editor.edit(FRAMES, params(**by_units, guidance_low=1.0)).frames
    )


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_it_begins_where_diffusers_does(steps: int) -> None:
    """`get_timesteps` of its image-to-image pipeline, whose scheduler does not matter here."""
    from types import SimpleNamespace

    from diffusers import EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline

    scheduler = EulerDiscreteScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(steps)
    theirs = StableDiffusionImg2ImgPipeline.get_timesteps
    for strength in np.linspace(0, 1, 41):
        times, left = theirs(SimpleNamespace(scheduler=scheduler), steps, float(strength), "cpu")
        assert steps - first_step(float(strength), steps) == left == len(times)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "ddim"])
def test_it_is_the_rest_of_diffusers_pipeline(
    editor: Editor, checkpoint_folder: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their loop over their last steps, from the source with the noise that their scheduler adds."""
    import diffusers

    from fairy.runtime.denoise.noise import draw_noise
    from fairy.runtime.denoise.schedulers import SCHEDULERS

    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = editor.edit(FRAMES[:1], params(anchors=0, strength=0.5, sampler=sampler), latents=noise).frames
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(checkpoint_folder)
    pipeline.set_progress_bar_config(disable=True)
    kind = getattr(diffusers, SCHEDULERS[sampler])

    class Last(kind):
        """The last two steps of four."""

        init_noise_sigma = 1.0

        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.timesteps = self.timesteps[2:]
            if hasattr(self, "set_begin_index"):
                self.set_begin_index(2)

    pipeline.scheduler = Last.from_config(pipeline.scheduler.config)
    picture = torch.from_numpy(FRAMES[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        source = pipeline.vae.encode(picture).latent_dist.mode() * pipeline.vae.config.scaling_factor
    whole = kind.from_config(pipeline.scheduler.config)
    whole.set_timesteps(4)
    begin = whole.add_noise(source, noise[None], whole.timesteps[2:3])
    drawn = iter(range(2, 4))
    module = __import__(kind.__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        fresh = lambda *_, **__: draw_noise(3, next(drawn), [0], (4, 8, 8), per_frame=False)  # noqa: E731
        monkeypatch.setattr(module, "randn_tensor", fresh)
    theirs = pipeline(
        SNOW, image=picture / 2 + 0.5, num_inference_steps=4, latents=begin, guidance_scale=7.5,
        image_guidance_scale=1.5, output_type="np",
    ).images  # fmt: skip
    assert abs(theirs * 255 - ours).max() < 1.0


def test_none_is_the_source_through_the_autoencoder(editor: Editor) -> None:
    result = editor.edit(FRAMES, params(strength=0.0))
    assert np.array_equal(result.frames, through_the_autoencoder(editor))


def test_fewer_steps_are_computed_and_kept(editor: Editor) -> None:
    told: list = []
    weak = editor.edit(FRAMES, params(strength=0.5), on_progress=told.append)
    whole = editor.edit(FRAMES, params())
    assert weak.report.bank_bytes * 2 == whole.report.bank_bytes
    assert max(p.total for p in told if p.stage == "anchors") == 2
    assert not np.array_equal(weak.frames, whole.frames)


def test_a_ramp_is_every_frame_at_its_own_strength(editor: Editor) -> None:
    ramp = editor.edit(FRAMES, params(anchors=0, micro_batch=1, prompts=[(0, SNOW, (0, 1))])).frames
    for i in (0, 2, 3, 6):
        alone = editor.edit(FRAMES[i : i + 1], params(anchors=0, micro_batch=1, strength=i / 6)).frames
        assert np.array_equal(ramp[i], alone[0]), i


def test_a_ramp_reads_anchors_that_are_edited_in_full(editor: Editor) -> None:
    """So its last frame is that of the whole edit, and its first the source."""
    ramp = editor.edit(FRAMES, params(micro_batch=1, prompts=[(0, SNOW, (0, 1))]))
    whole = editor.edit(FRAMES, params(micro_batch=1))
    assert np.array_equal(ramp.frames[6], whole.frames[6])
    assert np.array_equal(ramp.frames[0], through_the_autoencoder(editor, FRAMES[:1])[0])
    anchor = whole.report.anchors[0]
    assert not np.array_equal(ramp.frames[anchor], whole.frames[anchor]), "it is edited as strongly as its turn is"


def test_one_strength_of_a_story_is_that_of_the_edit(editor: Editor) -> None:
    story = editor.edit(FRAMES, params(prompts=[(0, SNOW, 0.5)])).frames
    assert np.array_equal(story, editor.edit(FRAMES, params(strength=0.5)).frames)


def test_a_cut_does_not_restart_a_ramp() -> None:
    asked = params(shots=(4,), prompts=[(0, SNOW, (0, 0.75)), (7, "make it night")], strength=0.5)
    segments = plan_segments(asked, 10, 2)[0]
    found = [segment.strength_at(frame) for segment in segments for frame in range(segment.start, segment.stop)]
    assert found == pytest.approx([*np.linspace(0, 0.75, 7), 0.5, 0.5, 0.5])
    assert [bool(set(s.anchors) & {f for part in s.parts for f in part.frames}) for s in segments] == [
        True,
        True,
        False,
    ]


def test_stories_say_how_strongly(tmp_path: Path) -> None:
    story = tmp_path / "story.yaml"
    story.write_text('- {frame: 0, prompt: a, strength: [0, 1]}\n- {time: "0:02", prompt: b, strength: 0.4}\n')
    assert EditParams("x", prompts=read_prompts(story)).schedule == ((0, "a", (0.0, 1.0)), (2.0, "b", (0.4, 0.4)))
    for wrong in ("[0, 1, 2]", "strong", "2", "[0, -1]", "{a: 1}"):
        story.write_text(f"- {{frame: 0, prompt: a, strength: {wrong}}}\n")
        with pytest.raises(InputError):
            EditParams("x", prompts=read_prompts(story))
    with pytest.raises(InputError, match="strength = 1.5"):
        params(strength=1.5)


def test_other_methods_take_it_too(editor: Editor) -> None:
    changes = {"method": "pix2video", "anchors": None, "micro_batch": None}
    nothing = editor.edit(FRAMES[:3], params(**changes, strength=0.0)).frames
    assert np.array_equal(nothing, through_the_autoencoder(editor, FRAMES[:3]))
    ramp = editor.edit(FRAMES[:3], params(**changes, prompts=[(0, SNOW, (1, 0))])).frames
    assert np.array_equal(ramp[0], editor.edit(FRAMES[:3], params(**changes)).frames[0])
    assert np.array_equal(ramp[2], nothing[2])
