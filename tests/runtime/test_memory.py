"""Whether a job fits: the bank's size against a bank that is there, and refusals before anything is computed."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.bank.anchor_bank import AnchorBank
from fairy.runtime.plan import memory as memory_module
from fairy.runtime.plan.memory import bank_step_bytes, check_memory, free_bytes, known_costs, weights_bytes
from fairy.runtime.plan.plan import Plan
from fairy.runtime.record.progress import Monitor


def _plan(editor: Editor, frames: np.ndarray, params: EditParams) -> Plan:
    return editor._open(frames, params, Monitor(), None, None).plan


@pytest.mark.parametrize("layers", ["all", "decoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("anchors", "guidance", "steps"), [(1, 1.5, 1), (3, 0.0, 2), (5, 1.5, 3)])
def test_the_bank_has_the_bytes_that_were_foretold(
    editor: Editor, frames: np.ndarray, anchors: int, guidance: float, steps: int, dtype: torch.dtype, layers: str
) -> None:
    params = EditParams(
        "x", anchors=anchors, num_inference_steps=steps, image_guidance_scale=guidance, layers=layers, long_side=40
    )
    plan = _plan(editor, frames, params)
    shape = {"branches": plan.guidance.groups, "num_anchors": anchors, "latent_size": plan.latent_shape[1:]}
    graph = plan.graphs["unet_anchor"]
    bank = AnchorBank.allocate(graph, num_inference_steps=steps, dtype=dtype, device=torch.device("meta"), **shape)
    assert bank_step_bytes(graph, dtype=dtype, **shape) * steps == bank.num_bytes > 0


def test_weights_are_those_of_the_files(editor: Editor, checkpoint_folder: Path) -> None:
    files = sum(path.stat().st_size for path in checkpoint_folder.rglob("*.safetensors"))
    assert 0.9 * files < weights_bytes(editor._networks.checkpoint) <= files


def test_a_job_too_large_is_refused_before_any_frame_is_computed(
    editor: Editor, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = EditParams("x", anchors=4, num_inference_steps=50)
    costs = known_costs(editor._networks.checkpoint, _plan(editor, frames, params))
    bank = 50 * costs.bank_step_bytes
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: bank - 1)
    told: list[object] = []
    with pytest.raises(InputError, match=r"needs at least .* choose anchors = 3 or .*dtype = float16\.$"):
        editor.edit(frames, params, on_progress=told.append)
    assert not [progress for progress in told if getattr(progress, "stage", "") != "probe"]
    _plan(editor, frames, replace(params, anchors=3))
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: bank)
    _plan(editor, frames, params)


def test_of_workers_gpus_all_memory_counts(editor: Editor, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free there is less after the first job, whose memory the workers keep for the next."""
    params = EditParams("x", anchors=4, num_inference_steps=50)
    checkpoint, plan = editor._networks.checkpoint, _plan(editor, frames, params)
    need = 50 * known_costs(checkpoint, plan).bank_step_bytes + weights_bytes(checkpoint)
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 0)
    monkeypatch.setattr(memory_module, "total_bytes", lambda device: 2 * need)
    check_memory(checkpoint, plan, torch.device("cuda"), workers=2)
    monkeypatch.setattr(memory_module, "total_bytes", lambda device: need // 2)
    with pytest.raises(InputError, match="needs at least"):
        check_memory(checkpoint, plan, torch.device("cuda"), workers=2)


def test_workers_share_the_memory_of_the_machine(
    editor: Editor, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = EditParams("x", anchors=4, num_inference_steps=50)
    checkpoint, plan = editor._networks.checkpoint, _plan(editor, frames, params)
    need = 50 * known_costs(checkpoint, plan).bank_step_bytes + weights_bytes(checkpoint)
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 8 * need)
    check_memory(checkpoint, plan, torch.device("cpu"), workers=8)
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 8 * need - 8)
    with pytest.raises(InputError, match="needs at least"):
        check_memory(checkpoint, plan, torch.device("cpu"), workers=8)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_bank_on_the_host_must_fit_there(
    editor: Editor, frames: np.ndarray, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = EditParams("x", anchors=4, num_inference_steps=50)
    checkpoint, plan = editor._networks.checkpoint, _plan(editor, frames, params)
    bank = 50 * known_costs(checkpoint, plan).bank_step_bytes
    monkeypatch.setattr(memory_module, "total_bytes", lambda device: 1 << 40)
    pinned = 2 ** math.ceil(math.log2(bank))  # torch's allocator of pinned memory rounds up
    assert pinned > bank
    host = [pinned * workers]
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 1 << 40)
    monkeypatch.setattr(memory_module, "host_bytes", lambda: host[0])
    check_memory(checkpoint, plan, torch.device("cuda"), bank_on_host=True, workers=workers)
    host[0] -= workers
    with pytest.raises(InputError, match="needs at least"):
        check_memory(checkpoint, plan, torch.device("cuda"), bank_on_host=True, workers=workers)


def test_a_bank_in_8_bit_needs_less_and_stays_on_the_device(
    editor: Editor, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = EditParams("x", anchors=4, num_inference_steps=50)
    checkpoint, full = editor._networks.checkpoint, _plan(editor, frames, params)
    eight = _plan(editor, frames, replace(params, bank_dtype="float8"))
    step = known_costs(checkpoint, full).bank_step_bytes
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 50 * step // 4 + step)
    check_memory(checkpoint, eight, torch.device("cpu"))
    with pytest.raises(InputError, match="needs at least"):
        check_memory(checkpoint, full, torch.device("cpu"))
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 50 * step // 4 + step - 1)
    with pytest.raises(InputError, match="needs at least"):
        check_memory(checkpoint, eight, torch.device("cpu"))
    with pytest.raises(InputError, match=r"bank_dtype = 'float8' keeps .* choose one\.$"):
        check_memory(checkpoint, eight, torch.device("cpu"), bank_on_host=True)


def test_where_the_system_does_not_tell_nothing_is_refused(
    editor: Editor, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: None)
    plan = _plan(editor, frames, EditParams("x", anchors=5, num_inference_steps=1000))
    assert len(plan.schedule) == 1000


def test_free_memory_is_what_the_machine_says() -> None:
    psutil = pytest.importorskip("psutil")
    free = free_bytes(torch.device("cpu"))
    assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2)
