"""Whole edits on a random model: the oracles of the method, determinism, files, progress, cancelling, NaN."""

import hashlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairy.runtime import (
    Cancelled,
    Editor,
    EditParams,
    FairyError,
    InputError,
    NumericalError,
    Progress,
)
from fairy.runtime.denoise import networks
from fairy.runtime.video import VideoWriter, probe, read_frames
from tests.conftest import SCHEDULER, write_checkpoint
from tests.runtime.conftest import make_frames, write_clip

QUICK = EditParams("make it red", num_inference_steps=2)


def _pipeline(folder: Path, scheduler: str = "EulerAncestralDiscreteScheduler"):
    import diffusers

    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(folder)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _blocks(frames: np.ndarray) -> np.ndarray:
    """Means over 8×8 pixels."""
    n, height, width, _ = frames.shape
    return frames.reshape(n, height // 8, 8, width // 8, 8, 3).mean((2, 4))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler", "ddim", "lcm"])
def test_without_anchors_it_is_diffusers_pipeline(
    editor: Editor, checkpoint_folder: Path, frames: np.ndarray, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same latents and the same per-step noise; pictures need no padding, so that nothing else differs."""
    from fairy.runtime.denoise.noise import draw_noise
    from tests.runtime.test_sampler import CLASSES

    pictures = frames[:2].repeat(4, axis=1)[:, :64].repeat(2, axis=2)[:, :, :128]
    latents = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(3))
    params = EditParams(
        "make it red", negative_prompt="blue", anchors=0, num_inference_steps=3, sampler=sampler, seed=5
    )
    ours = editor.edit(pictures, params, latents=latents).frames
    pipeline = _pipeline(checkpoint_folder, CLASSES[sampler])
    module = __import__(type(pipeline.scheduler).__module__, fromlist=["randn_tensor"])
    for i in range(2):
        step = iter(range(3))
        monkeypatch.setattr(
            module,
            "randn_tensor",
            lambda shape, step=step, **_: draw_noise(5, next(step), [0], tuple(shape[1:]), per_frame=False),
            raising=False,
        )
        theirs = pipeline(
            "make it red",
            image=Image.fromarray(pictures[i]),
            negative_prompt="blue",
            num_inference_steps=3,
            guidance_scale=7.5,
            image_guidance_scale=1.5,
            latents=latents[None].clone(),
            output_type="np",
        ).images[0]
        difference = np.abs((theirs * 255).round() - ours[i].astype(np.float32))
        assert difference.max() <= 1, f"{sampler}, frame {i}: {difference.max()} levels"


def test_default_noise_is_the_documented_one(editor: Editor, frames: np.ndarray) -> None:
    from fairy.runtime.denoise.noise import INITIAL, draw_noise

    given = draw_noise(0, INITIAL, [0], (4, 8, 8), per_frame=False)[0]
    one = editor.edit(frames, QUICK)
    assert np.array_equal(one.frames, editor.edit(frames, QUICK, latents=given).frames)
    each = draw_noise(0, INITIAL, range(5), (4, 8, 8), per_frame=True)
    assert not np.array_equal(one.frames, editor.edit(frames, QUICK, latents=each).frames)


def test_all_frames_anchors_equal_joint_attention_of_phase_a(editor: Editor, frames: np.ndarray) -> None:
    """With every frame an anchor there is one batch and no phase B; the graph test compares it with joint attention."""
    result = editor.edit(frames, EditParams("make it red", num_inference_steps=2, anchors=5))
    assert result.report.anchors == (0, 1, 2, 3, 4)
    assert "frames" not in result.report.times_ms
    subset = editor.edit(frames[:3], EditParams("make it red", num_inference_steps=2, anchors=3))
    assert not np.array_equal(result.frames[:3], subset.frames)  # every anchor sees all the others


def test_anchors_keep_what_phase_a_gave_them(editor: Editor, frames: np.ndarray) -> None:
    with_others = editor.edit(frames, EditParams("make it red", num_inference_steps=2, anchors=[1, 3]))
    alone = editor.edit(frames[[1, 3]], EditParams("make it red", num_inference_steps=2, anchors=2))
    assert np.array_equal(with_others.frames[[1, 3]], alone.frames)


def test_a_frame_depends_on_its_anchors_and_not_on_its_neighbours(editor: Editor, frames: np.ndarray) -> None:
    params = EditParams("make it red", num_inference_steps=2, anchors=[0], micro_batch=2)
    one = editor.edit(frames, params).frames
    changed = frames.copy()
    changed[3] = 255 - changed[3]
    other = editor.edit(changed, params).frames
    assert np.array_equal(one[[0, 1, 2, 4]], other[[0, 1, 2, 4]])
    assert not np.array_equal(one[3], other[3])
    changed = frames.copy()
    changed[0] = 255 - changed[0]
    assert not np.array_equal(one[4], editor.edit(changed, params).frames[4])


def test_same_inputs_same_bytes_and_micro_batch_within_rounding(editor: Editor, frames: np.ndarray) -> None:
    base = editor.edit(frames, QUICK)
    again = editor.edit(frames, QUICK)
    assert np.array_equal(base.frames, again.frames)
    assert base.report.frames_sha256 == again.report.frames_sha256 == hashlib.sha256(base.frames).hexdigest()
    for size in (1, 2, 4):
        other = editor.edit(frames, EditParams("make it red", num_inference_steps=2, micro_batch=size)).frames
        assert np.abs(other.astype(int) - base.frames.astype(int)).max() <= 1


def test_the_last_micro_batch_is_padded_so_that_bytes_do_not_depend_on_the_length(editor: Editor) -> None:
    frames = make_frames(8)
    params = EditParams("make it red", num_inference_steps=2, anchors=[0], micro_batch=3)
    long, short = editor.edit(frames, params).frames, editor.edit(frames[:6], params).frames
    assert np.array_equal(long[:6], short)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"guidance_scale": 3.0},
        {"image_guidance_scale": 1.0},
        {"num_inference_steps": 3},
        {"negative_prompt": "blue"},
        {"anchors": 1},
        {"layers": "decoder"},
        {"noise": "per-frame"},
        {"sampler": "ddim"},
        {"prompt": "make it blue"},
    ],
)
def test_every_parameter_has_an_effect(editor: Editor, frames: np.ndarray, change: dict) -> None:
    base = editor.edit(frames, QUICK).frames
    values = {"prompt": "make it red", "num_inference_steps": 2, **change}
    assert not np.array_equal(base, editor.edit(frames, EditParams(**values)).frames), change


def test_sizes_of_the_result(editor: Editor) -> None:
    frames = make_frames(2, height=45, width=91)
    small = editor.edit(frames, EditParams("x", num_inference_steps=1, long_side=61))
    assert small.frames.shape == (2, round(45 * 61 / 91), 61, 3)
    back = editor.edit(frames, EditParams("x", num_inference_steps=1, long_side=61, size="source"))
    assert back.frames.shape == frames.shape
    large = editor.edit(frames, EditParams("x", num_inference_steps=1, long_side=128, upscale=True))
    assert large.frames.shape[2] == 128


def test_padding_is_cropped_away_again(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With networks that hand a picture through, what comes out is what went in, at any size."""
    frames = make_frames(2, height=41, width=55)
    kept = []

    def encode(self, run, pictures):
        kept.extend(self._network_input(run, picture) for picture in pictures)
        return torch.zeros(len(pictures), *run.plan.latent_shape)

    def decode(self, run, latents):
        return [networks._to_numpy(networks._levels(run, kept.pop(0)))[0] for _ in latents]

    monkeypatch.setattr(networks.Networks, "encode", encode)
    monkeypatch.setattr(networks.Networks, "decode", decode)
    result = editor.edit(frames, EditParams("x", num_inference_steps=1, anchors=2))
    assert np.array_equal(result.frames, frames)


def test_stream_gives_the_same_frames_in_order(editor: Editor, clip: Path) -> None:
    whole = editor.edit(clip, QUICK)
    parts = list(editor.stream(clip, EditParams("make it red", num_inference_steps=2)))
    assert np.array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    assert [part.start for part in parts] == [0, *np.cumsum([len(part.frames) for part in parts])[:-1].tolist()]
    info = probe(clip)
    assert [p for part in parts for p in part.pts] == info.pts.tolist()


def test_edit_file_writes_what_edit_returns(editor: Editor, clip: Path, tmp_path: Path) -> None:
    out, beside, preview = tmp_path / "out.mp4", tmp_path / "beside.mp4", tmp_path / "anchors.png"
    report = editor.edit_file(clip, out, QUICK, compare=beside, preview=preview, crf=0)
    result = editor.edit(clip, QUICK)
    assert report.frames_sha256 == result.report.frames_sha256
    source, written = probe(clip), probe(out)
    assert written.num_frames == report.num_frames == 5
    assert [p * written.time_base for p in written.pts.tolist()] == [p * source.time_base for p in source.pts.tolist()]
    assert written.audio == source.audio == ("aac",)
    decoded = np.stack(list(read_frames(written)))
    assert np.abs(_blocks(decoded) - _blocks(result.frames)).mean() < 3  # 4:2:0 blurs this model's noise, no more
    both = probe(beside)
    assert (both.width, both.height) == (64 * 2 + 4, 48)
    row = np.asarray(Image.open(preview)).astype(int)
    anchors = [result.frames[a] for a in result.report.anchors]
    assert row.shape == (48, 3 * 64 + 2 * 4, 3)
    assert np.array_equal(row[:, :64], anchors[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["anchors.png", "beside.mp4", "out.mp4"]


def test_result_saves_with_sound_and_time_stamps(editor: Editor, clip: Path, tmp_path: Path) -> None:
    result = editor.edit(clip, QUICK)
    saved = probe(result.save(tmp_path / "out.mkv"))
    source = probe(clip)
    assert saved.num_frames == 5
    assert [round(float(p * saved.time_base), 3) for p in saved.pts] == [0.0, 0.04, 0.09, 0.12, 0.2]
    assert saved.audio == source.audio
    with pytest.raises(InputError, match="has its own time stamps"):
        result.save(tmp_path / "again.mp4", fps=25)


def test_arrays_and_folders_need_a_rate(editor: Editor, frames: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i}.png")
    from_array, from_folder = editor.edit(frames, QUICK), editor.edit(folder, QUICK)
    assert np.array_equal(from_array.frames, from_folder.frames)
    assert np.array_equal(editor.edit(torch.from_numpy(frames), QUICK).frames, from_array.frames)
    with pytest.raises(InputError, match="say how many frames a second"):
        from_array.save(tmp_path / "out.mp4")
    assert probe(from_array.save(tmp_path / "out.mp4", fps=12.5)).duration_s == pytest.approx(5 / 12.5)
    editor.edit_file(folder, tmp_path / "folder.mp4", QUICK, fps=10)
    assert probe(tmp_path / "folder.mp4").num_frames == 5


def test_start_and_end_edit_a_part(editor: Editor, clip: Path, tmp_path: Path) -> None:
    part = EditParams("make it red", num_inference_steps=1, start=0.04, end=0.2)
    result = editor.edit(clip, part)
    assert result.report.num_frames == 3
    saved = probe(result.save(tmp_path / "part.mp4"))
    assert [round(float(p * saved.time_base), 3) for p in saved.pts] == [0.0, 0.05, 0.08]
    with pytest.raises(InputError, match="No frame is shown between"):
        editor.edit(clip, EditParams("x", start=9.0))


def test_progress_tells_every_step_and_the_report_everything(editor: Editor, clip: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    result = editor.edit(
        clip, EditParams("x", num_inference_steps=3, anchors=1, micro_batch=2), on_progress=told.append
    )
    assert [p.done for p in told if p.stage == "anchors"] == [1, 2, 3]
    assert [p.done for p in told if p.stage == "frames"] == [1, 2, 3, 4, 5, 6]
    assert {p.total for p in told if p.stage == "frames"} == {6}
    assert (told[0].stage, told[-1].stage) == ("probe", "frames")
    report = result.report
    assert report.backend == "eager"
    assert report.anchors == (2,)
    assert {"probe", "text", "encode", "anchors", "frames", "decode", "first_frame", "total"} <= set(report.times_ms)
    assert report.bank_bytes > 0
    assert report.params["num_inference_steps"] == 3
    report.save(tmp_path / "report.json")
    loaded = json.loads((tmp_path / "report.json").read_text())
    assert loaded["frames_sha256"] == report.frames_sha256
    assert loaded["source"]["num_frames"] == 5


@pytest.mark.parametrize("at", [("probe", 5), ("anchors", 1), ("frames", 1), ("frames", 3)])
def test_cancelling_at_any_step_leaves_nothing_half_done(
    editor: Editor, clip: Path, tmp_path: Path, at: tuple[str, int]
) -> None:
    cancel, told = threading.Event(), []

    def on_progress(progress: Progress) -> None:
        told.append((progress.stage, progress.done))
        if told[-1] == at:
            cancel.set()

    with pytest.raises(Cancelled, match=r"[Cc]ancelled"):
        editor.edit_file(
            clip,
            tmp_path / "out.mp4",
            EditParams("x", num_inference_steps=2, anchors=1, micro_batch=2),
            on_progress=on_progress,
            cancel=cancel,
        )
    assert told[-1] == at  # the very next step noticed it
    assert {path.name for path in tmp_path.iterdir()} <= {"out.mp4.job"}, "only what --resume can go on from"
    assert editor.edit(clip, QUICK).report.num_frames == 5  # the Editor still works


def test_an_exception_in_the_callback_ends_the_job_cleanly(editor: Editor, clip: Path, tmp_path: Path) -> None:
    def on_progress(progress: Progress) -> None:
        if progress.stage == "frames":
            raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        editor.edit_file(clip, tmp_path / "out.mp4", QUICK, on_progress=on_progress)
    assert list(tmp_path.iterdir()) == []


# -- NaN ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fragile(checkpoint_folder: Path) -> Editor:
    """An Editor in bfloat16, to be broken by a test."""
    return Editor.from_pretrained(checkpoint_folder, device="cpu", dtype="bfloat16")


def _break(editor: Editor, graph: str, precision: torch.dtype, *, calls: set[int] | None = None) -> None:
    """Make one graph return NaN in one precision, always or at the given calls."""
    backend = editor._networks.backend
    make, count = backend.engine, iter(range(10**6))

    class Broken:
        def __init__(self, engine) -> None:
            self.engine = engine
            self.spec = engine.spec

        def __call__(self, inputs, out=None):
            outputs = self.engine(inputs, out)
            if calls is None or next(count) in calls:
                first = next(iter(outputs))
                outputs[first] = torch.full_like(outputs[first], float("nan"))
            return outputs

    def engine(spec, wanted=None):
        made = make(spec, wanted)
        return Broken(made) if spec.name == graph and (wanted or editor._dtype) == precision else made

    backend.engine = engine


@pytest.mark.parametrize(
    ("graph", "what"),
    [
        ("unet_anchor", "The anchors"),
        ("unet_frame", "Frames 1 to 3"),
        ("vae_encoder", "The image latents"),
        ("vae_decoder", "A decoded frame"),
        ("text_encoder", "The text features"),
    ],
)
def test_nan_is_noticed_repeated_in_float32_and_reported(
    fragile: Editor, editor: Editor, frames: np.ndarray, graph: str, what: str
) -> None:
    expected = editor.edit(frames, QUICK).frames.astype(int)
    _break(fragile, graph, torch.bfloat16)
    result = fragile.edit(frames, QUICK)
    assert any(what in sentence and "float32" in sentence for sentence in result.report.fallbacks)
    assert np.abs(result.frames.astype(int) - expected).mean() < 12  # pictures, not noise or black


def test_only_the_micro_batch_that_failed_is_repeated(fragile: Editor, frames: np.ndarray) -> None:
    untouched = fragile.edit(frames, EditParams("make it red", num_inference_steps=2, anchors=1, micro_batch=2))
    _break(fragile, "unet_frame", torch.bfloat16, calls={2})  # first step of the second micro-batch
    result = fragile.edit(frames, EditParams("make it red", num_inference_steps=2, anchors=1, micro_batch=2))
    assert [s for s in result.report.fallbacks if "Frames 3 to 4" in s]
    assert len(result.report.fallbacks) == 1
    assert np.array_equal(result.frames[:3], untouched.frames[:3])
    assert not np.array_equal(result.frames[3:], untouched.frames[3:])


def test_nan_in_float32_is_an_error_that_says_so(checkpoint_folder: Path, frames: np.ndarray, tmp_path: Path) -> None:
    with Editor.from_pretrained(checkpoint_folder, device="cpu") as broken:
        _break(broken, "unet_frame", torch.float32)
        with pytest.raises(NumericalError, match="Frames 1 to 3 became NaN or infinite in float32"):
            broken.edit(frames, QUICK)


def test_infinite_weights_are_noticed(tmp_path: Path, frames: np.ndarray) -> None:
    folder = write_checkpoint(tmp_path / "model")
    with Editor.from_pretrained(folder, device="cpu") as broken:
        next(broken._networks.checkpoint.unet.conv_out.parameters()).data.fill_(float("inf"))
        with pytest.raises(NumericalError, match="The anchors became NaN"):
            broken.edit(frames, QUICK)


# -- what cannot be edited -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "uint8"),
        (np.zeros((8, 8, 3), np.uint8), "uint8 \\[T, H, W, 3\\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        (np.zeros((2, 8, 0, 3), np.uint8), "no frames or no pixels"),
        ([1, 2], "must be a path or uint8 frames"),
        ("missing.mp4", "missing.mp4"),
    ],
)
def test_what_is_not_a_video_is_refused(editor: Editor, video: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        editor.edit(video, QUICK)  # type: ignore[arg-type]


def test_anchors_beyond_the_video_are_refused(editor: Editor, frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="9 anchors are more than the video's 5 frames"):
        editor.edit(frames, EditParams("x", anchors=9))


@pytest.mark.parametrize("shape", [(4, 8, 7), (3, 8, 8), (2, 4, 8, 8), (4, 8)])
def test_latents_of_a_wrong_shape_name_the_right_one(
    editor: Editor, frames: np.ndarray, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match=r"\[4, 8, 8\] for all frames or \[5, 4, 8, 8\]"):
        editor.edit(frames, QUICK, latents=torch.zeros(shape))


def test_preview_without_anchors_is_refused(editor: Editor, frames: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="anchors = 0"):
        editor.edit(frames, EditParams("x", anchors=0), preview=tmp_path / "a.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "fastest"}, "backend = 'fastest' is not known"),
        ({"gpus": 2}, "gpus = 2"),
        ({"device": "tpu"}, "'tpu'"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"dtype": "int8"}, "dtype = 'int8' is not known"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_impossible_editors_are_refused(checkpoint_folder: Path, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Editor.from_pretrained(checkpoint_folder, **options)


# -- one job at a time ----------------------------------------------------------------------------------------------


def test_a_second_call_waits_for_the_first(checkpoint_folder: Path, frames: np.ndarray) -> None:
    with Editor.from_pretrained(checkpoint_folder, device="cpu") as editor:
        inside, order = threading.Event(), []

        def slow(progress: Progress) -> None:
            inside.set()
            time.sleep(0.05)
            order.append("first")

        first = threading.Thread(target=lambda: editor.edit(frames, QUICK, on_progress=slow))
        first.start()
        assert inside.wait(30)
        editor.edit(frames, QUICK, on_progress=lambda _: order.append("second"))
        first.join(60)
        assert order == sorted(order)


def test_a_stream_left_open_does_not_hang_the_same_thread(checkpoint_folder: Path, frames: np.ndarray) -> None:
    with Editor.from_pretrained(checkpoint_folder, device="cpu") as editor:
        stream = editor.stream(frames, EditParams("x", num_inference_steps=1, micro_batch=1))
        next(stream)
        with pytest.raises(FairyError, match="in the middle of a stream"):
            editor.edit(frames, QUICK)
        stream.close()
        assert len(editor.edit(frames, QUICK).frames) == 5


def test_a_closed_editor_says_so(checkpoint_folder: Path, frames: np.ndarray) -> None:
    editor = Editor.from_pretrained(checkpoint_folder, device="cpu")
    editor.warm_up(64, 64)
    editor.close()
    editor.close()
    with pytest.raises(FairyError, match="was closed"):
        editor.edit(frames, QUICK)


def test_the_process_keeps_its_thread_count(editor: Editor, frames: np.ndarray) -> None:
    before = torch.get_num_threads()
    seen = []
    editor.edit(frames, QUICK, on_progress=lambda _: seen.append(torch.get_num_threads()))
    for part in editor.stream(frames, QUICK):
        assert torch.get_num_threads() == before
        assert not torch.is_inference_mode_enabled()
        assert part.frames.dtype == np.uint8
    assert torch.get_num_threads() == before


def test_recommended_values_of_the_model_are_used(tmp_path: Path, frames: np.ndarray) -> None:
    folder = write_checkpoint(tmp_path / "m", recommended={"num_inference_steps": 1, "long_side": 32, "anchors": 1})
    with Editor.from_pretrained(folder, device="cpu") as editor:
        report = editor.edit(frames, EditParams("x")).report
    assert (report.width, report.height) == (32, 24)
    assert report.params["num_inference_steps"] == 1
    assert report.anchors == (2,)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_prediction_types_against_diffusers(tmp_path: Path, prediction: str) -> None:
    folder = write_checkpoint(tmp_path / "m", scheduler={**SCHEDULER, "prediction_type": prediction})
    picture = make_frames(1, height=64, width=64)
    latents = torch.randn(4, 8, 8)
    with Editor.from_pretrained(folder, device="cpu") as editor:
        ours = editor.edit(picture, EditParams("x", anchors=0, num_inference_steps=2, sampler="euler"), latents=latents)
    theirs = _pipeline(folder, "EulerDiscreteScheduler")(
        "x",
        image=Image.fromarray(picture[0]),
        num_inference_steps=2,
        image_guidance_scale=1.5,
        latents=latents[None],
        output_type="np",
    ).images[0]
    assert np.abs((theirs * 255).round() - ours.frames[0]).max() <= 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(editor: Editor, tmp_path: Path) -> None:
    """The long clip's frames together are five times what memory may grow by."""
    import psutil

    params = EditParams("x", num_inference_steps=1, anchors=1, long_side=16, size="source")
    still = make_frames(1, height=480, width=640)
    clips = [write_clip(tmp_path / f"{n}.mp4", np.repeat(still, n, axis=0), sound=False) for n in (10, 170)]
    editor.edit_file(clips[0], tmp_path / "warm.mp4", params)
    process = psutil.Process()
    before, peak, bound = process.memory_info().rss, 0, 32 * 2**20
    assert 170 * still.nbytes > 4.5 * bound

    def watch(progress: Progress) -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)

    editor.edit_file(clips[1], tmp_path / "long.mp4", params, on_progress=watch)
    assert peak - before < bound, f"{(peak - before) / 2**20:.0f} MiB more for 17 times the frames"


# -- paths, limits and threads ---------------------------------------------------------------------------------------


def test_tilde_and_a_change_of_folder(
    editor: Editor, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(clip.parent)
    editor.edit_file(clip.name, "~/out.mp4", QUICK)
    assert (tmp_path / "out.mp4").is_file()
    result = editor.edit(clip.name, QUICK)
    monkeypatch.chdir(tmp_path)
    assert result.save("later.mp4") == tmp_path / "later.mp4"
    assert probe(tmp_path / "later.mp4").audio == ("aac",)


def test_max_pixels_holds_for_files_folders_and_the_written_video(editor: Editor, tmp_path: Path) -> None:
    from fairy.runtime.video import info

    frames = make_frames(2, height=48, width=64)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i}.png")
    clip = write_clip(tmp_path / "clip.mp4", frames)
    small = EditParams("x", num_inference_steps=1, max_pixels=3000)
    for video in (folder, clip):
        with pytest.raises(InputError, match=r"3,?072|3000|3,000"):
            editor.edit(video, small)
    assert info.MAX_PIXELS > 3072
    exact = EditParams("x", num_inference_steps=1, max_pixels=3072)
    assert len(editor.edit(folder, exact).frames) == len(editor.edit(clip, exact).frames) == 2


def test_what_cannot_be_written_is_refused_before_the_video_is_read(editor: Editor, clip: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    for wrong in ({"out": "out.xyz"}, {"crf": 99}, {"crf": "x"}, {"fps": 25}, {"fps": "25"}, {"preview": "a.gif"}):
        given = {"out": "out.mp4", **wrong}
        paths = {key: tmp_path / value if key in ("out", "preview") else value for key, value in given.items()}
        with pytest.raises(InputError):
            editor.edit_file(clip, paths.pop("out"), QUICK, on_progress=told.append, **paths)
    assert told == []


def test_a_stream_may_change_threads(checkpoint_folder: Path, frames: np.ndarray) -> None:
    from concurrent.futures import ThreadPoolExecutor

    params = EditParams("x", num_inference_steps=1, anchors=0, micro_batch=1)
    with Editor.from_pretrained(checkpoint_folder, device="cpu") as editor, ThreadPoolExecutor(1) as other:
        stream = editor.stream(frames, params)
        next(stream)
        other.submit(next, stream).result(60)
        with pytest.raises(FairyError, match="in the middle of a stream"):
            other.submit(editor.edit, frames, params).result(60)
        waiting = threading.Thread(target=lambda: editor.edit(frames, params))
        waiting.start()
        assert len(list(stream)) == 3
        waiting.join(60)
        assert not waiting.is_alive()


def test_leaving_the_block_ends_an_open_stream_and_shows_the_real_error(
    checkpoint_folder: Path, frames: np.ndarray
) -> None:
    streams = []

    def use_and_fail(editor: Editor) -> None:
        with editor:
            streams.append(editor.stream(frames, EditParams("x", num_inference_steps=1, micro_batch=1)))
            next(streams[0])
            raise ValueError("the user's own")

    editor = Editor.from_pretrained(checkpoint_folder)
    with pytest.raises(ValueError, match="the user's own"):
        use_and_fail(editor)
    assert list(streams[0]) == []
    editor.close()


def test_no_helper_outlives_a_failed_job(editor: Editor, tmp_path: Path) -> None:
    import psutil

    clip = write_clip(tmp_path / "clip.mp4", make_frames(60), sound=False)

    def fail(progress: Progress) -> None:
        if progress.stage == "frames":
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError) as kept:
        editor.edit(clip, QUICK, on_progress=fail)
    assert kept.value is not None  # whoever holds the error holds no process by it
    children = psutil.Process().children(recursive=True)
    assert not [c for c in children if "fairy" in " ".join(c.cmdline())]


def test_a_recommended_number_of_anchors_suits_short_videos(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", recommended={"num_inference_steps": 1, "anchors": 3})
    with Editor.from_pretrained(folder, device="cpu") as editor:
        assert editor.edit(make_frames(1), EditParams("x")).report.anchors == (0,)
        with pytest.raises(InputError, match="2 anchors are more"):
            editor.edit(make_frames(1), EditParams("x", anchors=2))
        editor.warm_up(64, 64, EditParams("x", anchors=7))


def test_times_begin_when_the_job_is_asked_for(editor: Editor, clip: Path) -> None:
    times = editor.edit(clip, QUICK).report.times_ms
    apart = ("read", "write")  # in threads of their own, beside the others
    stages = sum(ms for stage, ms in times.items() if stage not in ("total", "first_frame", *apart))
    assert stages <= times["total"] * 1.001
    assert all(times.get(stage, 0.0) <= times["total"] for stage in apart)
    assert times["probe"] < times["first_frame"] <= times["total"]


def test_numpy_numbers_are_numbers() -> None:
    params = EditParams("x", seed=np.int64(3), guidance_scale=np.float32(2), anchors=list(np.arange(2)))
    assert (params.seed, params.guidance_scale, params.anchors) == (3, 2.0, (0, 1))
    assert type(params.seed) is int


def test_odd_inputs_are_refused_in_our_own_words(editor: Editor, frames: np.ndarray) -> None:
    for video in ("", torch.zeros(2, 8, 8, 3, dtype=torch.bfloat16)):
        with pytest.raises(InputError):
            editor.edit(video, QUICK)
    with pytest.raises(InputError, match="not valid Unicode"):
        EditParams("make it \udcff")
    with pytest.raises(InputError, match="NaN or infinite"):
        editor.edit(frames, QUICK, latents=torch.full((4, 8, 8), float("nan")))


def test_an_even_video_stays_playable_everywhere(editor: Editor, tmp_path: Path) -> None:
    """64 × 36 at long side 60 would be 60 × 34 by luck and 58 × 33 at 58: even all the same, and odd is said."""
    clip = write_clip(tmp_path / "clip.mp4", make_frames(2, 36, 64), sound=False)
    params = EditParams("make it snow", num_inference_steps=1, anchors=1, long_side=58)
    report = editor.edit_file(clip, tmp_path / "o.mp4", params)
    info = probe(tmp_path / "o.mp4")
    assert (info.width, info.height, info.pix_fmt) == (58, 32, "yuv420p")
    assert not any("4:4:4" in note for note in report.notes)
    frames = make_frames(2, 35, 63)
    with VideoWriter(tmp_path / "odd.mp4", width=63, height=35, fps=25) as writer:
        writer.write(frames)
    assert any("4:4:4" in note for note in writer.notes)
