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
    return module


def test_the_fastest_candidate_that_runs_wins(made_up: ModuleType, tmp_path: Path) -> None:
    said: list[str] = []
    table = command.tune("made_up", CPU, lambda call: call(), said.append)
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
        command.tune("made_up", CPU, lambda call: call(), lambda line: None)


def test_a_folder_that_cannot_be_written_is_a_sentence(made_up: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = command.tune("made_up", CPU, lambda call: call(), lambda line: None)
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
