"""While a worker waits for the bank it encodes what comes next, with the same latents, and nothing of another job."""

import threading
from types import SimpleNamespace

import pytest
import torch

from fairy.runtime import Editor, EditParams
from fairy.runtime.denoise.segment_edit import SegmentEdit
from fairy.runtime.plan.plan import plan_edit
from fairy.runtime.record.progress import Monitor
from fairy.runtime.record.run import Run
from fairy.runtime.workers.protocol import pack_frames
from fairy.runtime.workers.worker import Request, Server, Work
from tests.runtime.conftest import make_frames

FRAMES = make_frames(6)
NUMBER = 7


@pytest.fixture
def work(editor: Editor) -> Work:
    monitor, networks = Monitor(), editor._networks
    params = EditParams("make it red", num_inference_steps=2, anchors=1)
    plan = plan_edit(networks.checkpoint, FRAMES, params, monitor, latents=None, precision=torch.float32)
    return Work(SegmentEdit(networks, Run.of(plan, monitor), plan.segments[0]), NUMBER)


def server(editor: Editor, following: Request | None) -> Server:
    made = Server.__new__(Server)
    made._networks, made._listener = editor._networks, SimpleNamespace(following=lambda: following)
    return made


def part(frames: tuple[int, ...], *, job: int = NUMBER, what: str = "part", cancelled: bool = False) -> Request:
    cancel = threading.Event()
    if cancelled:
        cancel.set()
    payload = bytearray(pack_frames([FRAMES[i] for i in frames]))
    return Request({"do": what, "job": job, "part": 1, "frames": frames}, payload, cancel, None)


def test_a_frame_at_a_time_until_all_have_begun(editor: Editor, work: Work) -> None:
    waiting = server(editor, part((4, 5)))
    assert [waiting._encode_ahead(work) for _ in range(3)] == [True, True, False]
    ahead = {frame: work.edit._frames[frame].beside for frame in (4, 5)}
    work.edit.forget((4, 5))
    work.edit.begin((4, 5), [FRAMES[4], FRAMES[5]])
    assert all(torch.equal(ahead[frame], work.edit._frames[frame].beside) for frame in (4, 5))


@pytest.mark.parametrize("following", [None, part((4,), job=8), part((4,), what="decode"), part((4,), cancelled=True)])
def test_nothing_else_is_touched(editor: Editor, work: Work, following: Request | None) -> None:
    assert not server(editor, following)._encode_ahead(work)
    assert work.edit.lacks((4,))
