"""One loop for all methods: how far it is from an edit to the attention of one layer, and what tasks there are."""

import traceback
from pathlib import Path

import pytest
import torch

from fairy.engines import eager
from fairy.export.bases import attention_hook as model
from fairy.kernels import errors as kernels_errors
from fairy.runtime import Editor, EditParams
from fairy.runtime import editor as editor_module
from fairy.runtime.plan.plan import plan_edit
from fairy.runtime.plan.tasks import Task, tasks_of
from fairy.runtime.record.progress import Monitor
from tests.runtime.conftest import make_frames

OURS = [Path(str(module.__file__)).parent for module in (kernels_errors, model, eager, editor_module)]
MOST_LAYERS = 12


@pytest.mark.parametrize("method", ["fairy", "per_frame", "pix2video"])
def test_an_edit_is_near_its_attention(editor: Editor, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own functions from `Editor.edit` to the call of attention, in the stack of every such call."""
    attend, depths, names = model.AttentionHook._self_attention, [], []

    def counted(self: object, *arguments: object, **named: object) -> object:
        frames = traceback.extract_stack()[:-1]
        start = next(i for i, f in enumerate(frames) if f.name == "edit" and f.filename.endswith("runtime/editor.py"))
        own = [f.name for f in frames[start:] if any(Path(f.filename).is_relative_to(folder) for folder in OURS)]
        depths.append(len(own) + 1)  # and the attention layer itself
        names[:] = own
        return attend(self, *arguments, **named)

    monkeypatch.setattr(model.AttentionHook, "_self_attention", counted)
    editor.edit(make_frames(5), EditParams("make it red", num_inference_steps=2, method=method))
    assert max(depths) <= MOST_LAYERS, names


def _tasks(editor: Editor, **changes: object) -> list[list[Task]]:
    params = EditParams("make it red", num_inference_steps=3, **changes)
    checkpoint, frames = editor._networks.checkpoint, make_frames(7)
    plan = plan_edit(checkpoint, frames, params, Monitor(), latents=None, precision=torch.float32)
    return [list(tasks_of(plan, segment)) for segment in plan.segments]


def test_fairys_tasks_are_the_anchors_and_then_parts(editor: Editor) -> None:
    ((anchors, *parts),) = _tasks(editor, anchors=[1, 4], micro_batch=3)
    assert (anchors.frames, anchors.role, anchors.graph, anchors.calls) == ((1, 4), "anchors", "unet_anchor", 3)
    assert [(part.frames, part.role, part.graph) for part in parts] == [
        ((0, 2, 3), "frames", "unet_frame"), ((5, 6), "frames", "unet_frame"),
    ]  # fmt: skip
    ((alone,),) = _tasks(editor, anchors=0, micro_batch=8)
    assert (alone.frames, alone.graph) == (tuple(range(7)), "unet")


def test_units_are_tasks_of_one_call(editor: Editor) -> None:
    first, second = _tasks(editor, method="pix2video", shots=[4])
    assert all(task.calls == 1 and task.role == "units" for task in first)
    assert sorted((f, k) for task in first for f, k in zip(task.frames, task.first, strict=True)) == [
        (f, k) for f in range(4) for k in range(3)
    ]
    assert {frame for task in second for frame in task.frames} == {4, 5, 6}
    assert first[0].graph == "unet_no_sources"


def test_a_task_is_split_where_its_frames_are_independent() -> None:
    frames = Task((3, 5, 8), (0, 0, 0), 2, "unet_frame", "frames")
    first, rest = frames.split(2)
    assert (first.frames, first.filled(first.frames)) == ((3, 5), (3, 5))
    assert rest is not None
    last, none = rest.split(2)
    assert (last.filled(last.frames), none) == ((8, 8), None)  # a call's shape never varies
    assert list(last.steps()) == [(0, 0), (1, 1)]
    anchors = Task((3, 5, 8), (0, 0, 0), 2, "unet_anchor", "anchors")
    assert anchors.split(1) == (anchors, None)
    units = Task((3, 5), (2, 1), 1, "unet_2_sources", "units")
    assert units.split(1)[0].filled((3,)) == (3,)
