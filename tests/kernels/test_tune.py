"""The tuning command with a fake clock: the fastest candidate wins, what cannot run is left out, files are whole."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fairy.kernels import tune as command
from fairy.kernels.errors import MachineError
from fairy.kernels.tuning import Config, parse_table

CPU = torch.device("cpu")
MS = {16: 3.0, 32: 1.0, 64: 2.0, 128: 0.1}


def _candidates(dims: Mapping[str, int]) -> Sequence[Config]:
    return [Config((("BLOCK", block),), 4, 2) for block in MS]


def _tuning_call(dims: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Callable[[Config], object]:
    assert dtype == (torch.float32 if dims["element_bytes"] == 4 else torch.float16)

    def launch(config: Config) -> object:
        if config["BLOCK"] >= dims["limit"]:
            raise RuntimeError("out of resource: shared memory\nand more")
        return MS[config["BLOCK"]] * dims["rows"]

    return launch


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A tuned op whose launches return how long they take."""
    module = ModuleType("made_up_op")
    module.CANDIDATES, module.tuning_call = _candidates, _tuning_call
    module.TUNING_DIMS = [{"rows": 2, "limit": 128, "element_bytes": 2}, {"rows": 9, "limit": 999, "element_bytes": 4}]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command, "OPS", {"made_up": command.TunedOp(module.__name__)})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Made Up 9000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return module


def test_the_fastest_candidate_that_runs_wins(made_up: ModuleType, tmp_path: Path) -> None:
    said: list[str] = []
    *partial, table = command.tune("made_up", CPU, lambda call: call(), said.append)
    assert [len(t.entries) for t in partial] == [1]  # what is measured can be written at once
    assert table.capability == (9, 0)
    assert [e.config["BLOCK"] for e in table.entries] == [32, 128]
    assert [e.ms for e in table.entries] == [2.0, 0.9]
    assert dict(table.versions)["torch"] == torch.__version__
    assert any("128" in line and "out of resource" in line and "\n" not in line for line in said)
    path = command.write_table(table, tmp_path / "new")
    assert path.name == "made_up,device_name=Made_Up_9000.json"
    assert parse_table(path.read_text()) == table
    assert json.loads(path.read_text())["exact"] == ["element_bytes"]
    assert list(path.parent.iterdir()) == [path]


def test_no_candidate_that_runs_is_an_error(made_up: ModuleType) -> None:
    made_up.TUNING_DIMS = [{"rows": 1, "limit": 1, "element_bytes": 2}]
    with pytest.raises(MachineError, match="No candidate can run"):
        next(command.tune("made_up", CPU, lambda call: call(), lambda line: None))


def test_a_folder_that_cannot_be_written_is_a_sentence(made_up: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = next(command.tune("made_up", CPU, lambda call: call(), lambda line: None))
    with pytest.raises(MachineError, match="--out"):
        command.write_table(table, tmp_path / "file" / "folder")


def test_without_a_gpu_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--op", "geglu", "--out", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.strip() == "Tuning needs a CUDA GPU, and this machine has none that torch can use."
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("op", sorted(command.OPS))
def test_every_registered_op_offers_candidates_for_its_sizes(op: str) -> None:
    module = import_module(command.OPS[op].module)
    assert module.TUNING_DIMS
    for dims in module.TUNING_DIMS:
        assert set(command.OPS[op].exact) <= set(dims)
        candidates = module.CANDIDATES(dims)
        assert len(set(candidates)) == len(candidates) > 1


def test_the_sizes_that_an_edit_uses() -> None:
    sizes = {op: command.used_sizes(op) for op in command.OPS}
    assert {(d["head_dim"], d["tokens"], d["batch"]) for d in sizes["anchor_attention"]} == {
        (40, 3072, 9), (80, 768, 9), (160, 192, 9), (160, 48, 9),
    }  # fmt: skip
    assert {d["samples"] for d in sizes["group_norm_silu"]} == {9}
    assert [d["rows"] for d in sizes["geglu"]] == [9 * 3072, 9 * 768, 9 * 192]
    assert {d["frames"] for d in sizes["guidance_step"]} == {3}
    assert {d["rows"] for d in sizes["fp8_linear"]} == {9 * 3072, 9 * 768, 9 * 192}
    assert "fp8_linear" not in command._usual()  # a GPU must have it
    for op, found in sizes.items():
        assert all(dims in import_module(command.OPS[op].module).TUNING_DIMS for dims in found)
