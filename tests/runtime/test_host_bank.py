"""The bank in host memory: the bytes of the one on the device, with two steps of it there at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.plan import memory as memory_module
from tests.runtime.conftest import make_frames


@pytest.fixture(scope="module")
def frugal(checkpoint_folder: Path):
    with Editor.from_pretrained(checkpoint_folder, device="cpu", bank="host") as made:
        yield made


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("changes", [{}, {"layers": "decoder"}, {"shots": [4], "continue_look": True}])
def test_it_changes_no_byte(editor: Editor, frugal: Editor, steps: int, changes: dict) -> None:
    params = EditParams("make it red", num_inference_steps=steps, anchors=2, micro_batch=2, **changes)
    frames = make_frames(9)
    usual, other = editor.edit(frames, params), frugal.edit(frames, params)
    assert np.array_equal(usual.frames, other.frames)
    assert usual.report.bank_bytes == other.report.bank_bytes > 0


def test_two_steps_are_on_the_device_and_every_step_is_fetched_once_a_pass(frugal: Editor, monkeypatch) -> None:
    from fairy.runtime.bank.host import HostBank

    copies: list[tuple[bool, int]] = []
    really = HostBank._copy

    def counted(self, source, of, target, to, after=None):
        copies.append((target is self.home, to if target is self.home else of))
        return really(self, source, of, target, to, after)

    monkeypatch.setattr(HostBank, "_copy", counted)
    params = EditParams("make it red", num_inference_steps=4, anchors=2, micro_batch=2)
    frugal.edit(make_frames(6), params)
    assert [step for home, step in copies if home] == [0, 1, 2, 3]
    fetched = [step for home, step in copies if not home]
    assert fetched[:9] == [0, 1, 2, 3, 0, 1, 2, 3, 0]  # two micro-batches, each step fetched before it is needed


def test_a_bank_that_is_too_large_for_a_card_names_the_remedy(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairy.runtime.plan.plan import plan_edit
    from fairy.runtime.record.progress import Monitor

    checkpoint = editor._networks.checkpoint
    params = EditParams("make it red", num_inference_steps=50, anchors=3)
    plan = plan_edit(checkpoint, make_frames(6), params, Monitor(), latents=None, precision=torch.float32)
    each = memory_module.known_costs(checkpoint, plan).bank_step_bytes
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 10 * each)
    card = torch.device("cuda")
    with pytest.raises(InputError, match='choose bank = "host"'):
        memory_module.check_memory(checkpoint, plan, card)
    memory_module.check_memory(checkpoint, plan, card, bank_on_host=True)


def test_where_to_keep_it_must_be_known(checkpoint_folder: Path) -> None:
    with pytest.raises(InputError, match="bank = 'disk' is not known; choose one of device, host"):
        Editor.from_pretrained(checkpoint_folder, bank="disk")


@pytest.mark.slow
def test_workers_then_compute_the_anchors_each_for_itself(checkpoint_folder: Path, editor: Editor) -> None:
    params = EditParams("make it red", num_inference_steps=2, anchors=2, micro_batch=2)
    frames = make_frames(9)
    with Editor.from_pretrained(checkpoint_folder, device="cpu", bank="host", workers=2) as pair:
        result = pair.edit(frames, params)
    assert np.array_equal(result.frames, editor.edit(frames, params).frames)
