"""Shots and schedules of instructions: which frames belong together, and that each group is an edit of its own."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.inputs.frames import open_source
from fairy.runtime.plan.segments import frames_of_prompts, plan_segments
from fairy.runtime.plan.shots import find_cuts
from fairy.runtime.plan.story import first_instruction, read_prompts
from fairy.runtime.record.progress import Monitor
from tests.runtime.conftest import make_frames, write_clip

SNOW = EditParams("make it snow", num_inference_steps=2, seed=3)


def make_params(**changes: object) -> EditParams:
    return EditParams("make it snow", num_inference_steps=2, seed=3, **changes)


def test_a_micro_batch_is_not_larger_than_what_there_is_to_compute() -> None:
    """Every batch is filled up to its size."""
    assert plan_segments(make_params(anchors=3, micro_batch=1000), 9, 1000)[1] == 6
    assert plan_segments(make_params(anchors=0, micro_batch=1000), 9, 1000)[1] == 9
    assert plan_segments(make_params(anchors=3, micro_batch=4), 9, 4)[1] == 4
    assert plan_segments(make_params(anchors=9, micro_batch=7), 9, 7)[1] == 1
    assert plan_segments(make_params(anchors=3, micro_batch=50, shots=[20]), 30, 50)[1] == 17
    assert plan_segments(make_params(anchors=3), 4, None)[1] == 3, "what nobody asked for depends on no length"


@given(
    num_frames=st.integers(1, 60),
    cuts=st.sets(st.integers(0, 59)),
    starts=st.dictionaries(st.integers(0, 59), st.sampled_from(["sepia", "night"])),
    anchors=st.integers(0, 5),
    micro_batch=st.one_of(st.none(), st.integers(1, 9)),
)
def test_every_frame_is_in_one_part_of_one_segment(num_frames, cuts, starts, anchors, micro_batch) -> None:
    cuts = {cut for cut in cuts if cut < num_frames}
    starts = {start: prompt for start, prompt in starts.items() if start < num_frames}
    anchors = min(anchors, num_frames)
    params = make_params(shots=list(cuts), prompts=starts or None, anchors=anchors)
    segments, batch = plan_segments(params, num_frames, micro_batch)
    assert [frame for s in segments for part in s.parts for frame in range(part.start, part.stop)] == list(
        range(num_frames)
    )
    assert {s.start for s in segments} == {0, *cuts, *starts}
    prompt = "make it snow"
    for segment in segments:
        prompt = starts.get(segment.start, prompt)
        assert segment.prompt == prompt
        assert len(segment.anchors) == min(anchors, segment.stop - segment.start)
        assert all(segment.start <= a < segment.stop for a in segment.anchors)
        others = [frame for part in segment.parts for frame in part.frames]
        assert sorted([*others, *segment.anchors]) == list(range(segment.start, segment.stop))
        assert all(len(part.frames) <= batch for part in segment.parts)


def test_a_segment_is_edited_as_if_it_were_alone(editor: Editor) -> None:
    frames = make_frames(9)
    params = make_params(shots=[4], prompts={7: "invert the colours"}, micro_batch=3)
    told = []
    whole = editor.edit(frames, params, on_progress=told.append)
    alone = [
        editor.edit(frames[:4], make_params(micro_batch=3)).frames,
        editor.edit(frames[4:7], make_params(micro_batch=3)).frames,
        editor.edit(frames[7:], EditParams("invert the colours", num_inference_steps=2, seed=3, micro_batch=3)).frames,
    ]
    assert np.array_equal(whole.frames, np.concatenate(alone))
    assert [(s["start"], s["stop"]) for s in whole.report.segments] == [(0, 4), (4, 7), (7, 9)]
    assert whole.report.anchors == (0, 2, 3, 4, 5, 6, 7, 8)
    for stage in ("anchors", "frames"):
        done = [p for p in told if p.stage == stage]
        assert [p.done for p in done] == sorted(p.done for p in done)
        assert done[-1].done == done[-1].total


def test_a_continued_look_is_attention_to_the_anchor_before(editor: Editor) -> None:
    """Two shots of one frame each: the second attends to itself and to the first, as a frame does to its anchor."""
    frames = make_frames(2)
    continued = editor.edit(frames, make_params(anchors=1, shots=[1], continue_look=True)).frames
    expected = editor.edit(frames, make_params(anchors=[0])).frames
    apart = editor.edit(frames, make_params(anchors=1, shots=[1])).frames
    assert np.abs(continued.astype(int) - expected).max() <= 1
    assert np.abs(apart.astype(int) - expected).max() > 1


def test_the_frames_of_a_continued_shot_attend_to_the_anchor_before_too(editor: Editor) -> None:
    """With equal frames in both shots, the anchor before adds nothing that is not there: only weights change."""
    frames = make_frames(6)
    continued = editor.edit(frames, make_params(anchors=1, shots=[2, 4], continue_look=True))
    apart = editor.edit(frames, make_params(anchors=1, shots=[2, 4]))
    assert np.array_equal(continued.frames[:2], apart.frames[:2])
    assert all(not np.array_equal(continued.frames[i], apart.frames[i]) for i in range(2, 6))
    assert continued.report.bank_bytes == 2 * apart.report.bank_bytes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shots": [9]}, "9 is not a frame of the video; its frames are 0 to 8"),
        ({"shots": "sometimes"}, "shots = 'sometimes' is not known"),
        ({"prompts": {12: "sepia"}}, "12 is not a frame of the video"),
        ({"prompts": {0: " "}}, r"prompts: \(0, ' '\) is not a frame"),
        ({"prompts": []}, r"prompts = \[\] is not possible"),
        ({"prompts": {1.5: "sepia"}}, "1.5 s is a time, and a folder of images or an array has no clock"),
        ({"shots": [4], "anchors": [1, 2]}, "none in the segment of frames 4 to 8"),
        ({"continue_look": True, "anchors": 0}, "continue_look hands on an anchor"),
        ({"anchors": 10}, "10 anchors are more than the video's 9 frames"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(editor: Editor, changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        editor.edit(make_frames(9), make_params(**changes))


def test_times_of_the_video_become_frames_of_the_edit(clip: Path) -> None:
    """The clip's frames are shown at 0, 40, 90, 120 and 200 ms."""
    schedule = ((0, "a"), (0.04, "b"), (0.1, "c"), (4, "d"))
    params = EditParams("x", prompts=schedule)
    source = open_source(clip, params, Monitor())
    assert frames_of_prompts(params, source) == ((0, "a"), (1, "b"), (3, "c"), (4, "d"))
    later = EditParams("x", prompts=((0.1, "c"), (0, "a")), start=0.04)
    assert frames_of_prompts(later, open_source(clip, later, Monitor())) == ((0, "a"), (2, "c"))
    with pytest.raises(InputError, match="no frame that is edited is shown at 0.25 s; the video lasts 0.2"):
        frames_of_prompts(EditParams("x", prompts=((0.25, "z"),)), source)
    with pytest.raises(InputError, match="is frame 1, which has an instruction already"):
        frames_of_prompts(EditParams("x", prompts=((1, "a"), (0.03, "b"))), source)


def test_cuts_are_found_and_motion_is_none(tmp_path: Path) -> None:
    shots = [make_frames(20 + 5 * i, height=96, width=128, seed=i) for i in range(3)]
    path = write_clip(tmp_path / "film.mp4", np.concatenate(shots), sound=False)
    params = EditParams("x")
    assert find_cuts(open_source(path, params, Monitor()), Monitor()) == (20, 45)
    assert find_cuts(open_source(shots[2], params, Monitor()), Monitor()) == ()


def test_an_edit_finds_the_shots_by_itself(editor: Editor) -> None:
    dark, light = make_frames(8, seed=1) // 4, 255 - make_frames(8, seed=2) // 4
    frames = np.concatenate([dark, light])
    found = editor.edit(frames, make_params(shots="auto"))
    told = editor.edit(frames, make_params(shots=[8]))
    assert found.report.params["shots"] == (8,)
    assert np.array_equal(found.frames, told.frames)


def test_a_schedule_is_read_from_yaml_and_json(tmp_path: Path) -> None:
    yaml, json = tmp_path / "story.yaml", tmp_path / "story.json"
    yaml.write_text("- {frame: 0, prompt: make it winter}\n- {time: 1:02.5, prompt: 'make it spring: now'}\n")
    json.write_text('[{"frame": 0, "prompt": "make it winter"}, {"time": "62.5", "prompt": "make it spring: now"}]')
    expected = ((0, "make it winter"), (62.5, "make it spring: now"))
    assert read_prompts(yaml) == read_prompts(json) == expected
    assert first_instruction(None, expected) == "make it winter"
    assert first_instruction("make it snow", expected) == "make it snow"
    with pytest.raises(InputError, match="begins without an instruction; add an entry for frame 0"):
        first_instruction(None, ((5, "x"),))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{a", "neither YAML nor JSON"),
        ("a: b", "holds no list"),
        ("- {frame: two, prompt: x}", "entry 1, .*has no frame, time or duration with a prompt"),
        ("- {frame: 1, prompt: x, more: y}", "entry 1"),
        ("- !!python/object/apply:os.system ['true']", "entry 1|neither"),
        ("", "holds no list"),
    ],
)
def test_a_wrong_schedule_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_prompts(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "missing.yaml")
