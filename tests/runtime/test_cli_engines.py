"""The command line of engines: builds planned and made, the store looked at and tidied, every mistake one sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fairy.engines import backends
from fairy.export.bases.stable_diffusion import EDIT_GRAPHS
from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import MachineError
from fairy.runtime import embedded_model
from fairy.runtime.cli import main as cli
from fairy.runtime.cli.build import _parse_memory, _parse_range
from tests.conftest import make_controlnet
from tests.engines.fake_builder import FakeBuilder
from tests.runtime.conftest import make_frames, write_clip


@pytest.fixture
def builder(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    """A builder that stands for every backend."""
    made = FakeBuilder(load_checkpoint(checkpoint_folder))
    monkeypatch.setattr(backends, "make_builder", lambda name: made)
    return made


@pytest.fixture
def run(builder: FakeBuilder, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run `fairy` in this process on a store of its own; returns exit code, stdout and stderr."""

    def _run(*arguments: object) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        if words[0] == "build":
            words[1:1] = [str(checkpoint_folder), "--quiet"]
        code = cli.run([*words, "--store", str(tmp_path / "store")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return _run


def test_from_plan_to_prune(run, builder: FakeBuilder, tmp_path: Path) -> None:
    code, told, error = run("build", "--dry-run", "--json")
    assert (code, error) == (0, "")
    plan = json.loads(told)
    assert [engine["graph"] for engine in plan["engines"]] == list(EDIT_GRAPHS)
    assert plan["total"]["disk_bytes"] == sum(engine["disk_bytes"] for engine in plan["engines"])
    assert plan["total"]["memory_bytes"] == max(engine["memory_bytes"] for engine in plan["engines"])
    assert not (tmp_path / "store").exists()
    assert builder.built == []

    code, told, _ = run("build")
    assert code == 0
    assert len(told.splitlines()) == 5
    code, told, _ = run("build")
    assert told.count("(was there)") == 5
    assert builder.built == list(EDIT_GRAPHS)
    code, told, _ = run("build", "--dry-run")
    assert "0 to build in" in told

    code, told, _ = run("engines", "list", "--json")
    rows = {row["graph"]: row for row in json.loads(told)}
    assert {name: row["digest"] for name, row in rows.items()} == {e["graph"]: e["digest"] for e in plan["engines"]}
    code, told, _ = run("engines", "show", rows["vae_encoder"]["digest"][:8], "--json")
    assert set(json.loads(told)["files"]) == {"engine.json", "parts/weights.bin"}
    code, told, _ = run("engines", "show", rows["vae_encoder"]["digest"][:8])
    assert "largest error" in told
    code, told, _ = run("engines", "prune")
    assert told == f"0 engines removed, 5 left in {tmp_path / 'store'}.\n"
    builder.version = "2"
    code, told, _ = run("engines", "prune", "--json")
    assert set(json.loads(told).values()) == {"it was built with another fake"}
    assert "is empty" in run("engines", "list")[1]


def test_what_is_added_to_a_model_is_in_its_engines(run, tmp_path: Path) -> None:
    place, sizes = (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        {"lora_A": (1, 128), "lora_B": (128, 1)},
    )
    save_file({f"{place}.{name}.weight": torch.ones(size) for name, size in sizes.items()}, tmp_path / "a.safetensors")
    make_controlnet().save_pretrained(tmp_path / "net")

    def planned(*words: object) -> dict[str, str]:
        code, told, error = run("build", "--dry-run", "--json", *words)
        assert (code, error) == (0, "")
        return {engine["graph"]: engine["digest"] for engine in json.loads(told)["engines"]}

    plain, lora = planned(), planned("--lora", f"{tmp_path / 'a.safetensors'}:0.5")
    assert [name for name in plain if plain[name] != lora[name]] == ["text_encoder", "unet_anchor", "unet_frame"]
    guided = planned("--controlnet", tmp_path / "net")
    assert set(guided) - set(plain) == {
        "unet_anchor_controlled",
        "unet_frame_controlled",
        "condition_0",
        "controlnet_0",
    }
    assert run("build", "--dry-run", "--config", tmp_path)[0] == 2


def test_prune_all(run) -> None:
    run("build", "--graphs", "vae_encoder,vae_decoder")
    code, told, _ = run("engines", "prune", "--all")
    assert code == 0
    assert "2 engines removed, 0 left" in told


def test_verify_prints_the_errors(run, builder: FakeBuilder, tmp_path: Path) -> None:
    run("build", "--graphs", "vae_decoder")
    (row,) = json.loads(run("engines", "list", "--json")[1])
    code, told, error = run("engines", "verify", row["digest"][:7])
    assert (code, error) == (0, "")
    assert told.count("relative L2") == 2
    builder.changes["vae_decoder"] = lambda t: t + 3e-2
    code, told, error = run("engines", "verify", row["digest"], "--json")
    assert code == 1
    assert "further from eager than the 0.001 allowed" in error
    found = json.loads(told)["outputs"]
    assert all(abs(output["largest"] - 3e-2) < 1e-4 for output in found)
    file = tmp_path / "store" / "entries" / row["digest"] / "engine.json"
    file.write_text(file.read_text().replace("vae", "VAE"))
    code, _, error = run("engines", "verify", row["digest"])
    assert code == 2
    assert "is broken: the file 'engine.json' was changed" in error


def test_verify_wants_the_model_it_was_built_from(run, builder: FakeBuilder) -> None:
    run("build", "--graphs", "vae_decoder")
    (row,) = json.loads(run("engines", "list", "--json")[1])
    code, _, error = run("engines", "verify", row["digest"], "--model", embedded_model())
    assert code == 2
    assert "was not built from" in error


def test_sizes_are_padded_and_guessed(run) -> None:
    code, told, _ = run(
        "build", "--backend", "tensorrt", "--height", "360", "--width", "64:500:512", "--frames", "1:3:8",
        "--anchors", "2", "--graphs", "vae_encoder", "--memPoolSize", "workspace:2G", "--timingCacheFile", "cache",
        "--builderOptimizationLevel", "4", "--json",
    )  # fmt: skip
    assert code == 0
    (row,) = json.loads(told)
    assert row["shapes"] == {
        "height": [384, 384, 384], "width": [64, 512, 512], "frames": [1, 3, 8],
        "anchors": 2, "groups": 3, "tokens": 16,
    }  # fmt: skip
    (shown,) = json.loads(run("engines", "list", "--json")[1])
    key = json.loads(run("engines", "show", shown["digest"], "--json")[1])["key"]
    assert key["options"] == {"mem_pool_bytes": 2 << 30, "optimization_level": 4, "plugin": False}


def test_what_is_left_out_comes_from_the_model(run) -> None:
    code, told, error = run("build", "--backend", "compiled", "--graphs", "text_encoder", "--json")
    assert (code, error) == (0, "")
    (row,) = json.loads(told)
    assert row["shapes"]["height"] == row["shapes"]["width"] == [64, 512, 512]
    assert (row["shapes"]["anchors"], row["shapes"]["frames"]) == (3, [1, 3, 3])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fp16"], "--fp16 and the like switch nothing: TensorRT's networks are strongly typed"),
        (["--int8"], "strongly typed"),
        (["--backend", "eager"], "Backend 'eager' has no engines to build; choose one of onnxruntime"),
        (["--backend", "onnxruntime", "--height", "64"], "onnxruntime serve every shape"),
        (["--backend", "tensorrt", "--height", "a:b"], "--height 'a:b' is neither a number (384) nor a range"),
        (["--backend", "tensorrt", "--frames", "3:2:1"], "--frames '3:2:1' is not a range MIN:OPT:MAX"),
        (["--backend", "tensorrt", "--anchors", "-1"], "--anchors -1 is not possible"),
        (["--memPoolSize", "lots"], "--memPoolSize 'lots' is not a size"),
        (["--builderOptimizationLevel", "9"], "--builderOptimizationLevel '9'"),
        (["--graphs", "unets"], "There is no graph named 'unets'"),
        (["--layers", "some"], "--layers 'some' is not known"),
        (["--precision", "fp12"], "'fp12' is not known"),
    ],
)
def test_mistakes_are_one_sentence(run, arguments: list[str], words: str) -> None:
    code, told, error = run("build", *arguments)
    assert (code, told) == (2, "")
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


def test_a_backend_that_does_not_work_here_is_one_sentence(run, builder: FakeBuilder) -> None:
    builder.environment_error = MachineError("There is no GPU.")
    assert run("build") == (1, "", "error: There is no GPU.\n")


def test_sizes_of_memory() -> None:
    found = [_parse_memory(text) for text in ("4096", "4G", "workspace:512m", "workspace:7B", None)]
    assert found == [4096 << 20, 4 << 30, 512 << 20, 7, None]
    assert _parse_range("height", "384") == (384, 384, 384)


def test_an_edit_names_its_engines(run, builder: FakeBuilder, checkpoint_folder: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", make_frames(3), sound=False)
    report = tmp_path / "report.json"
    words = ["edit", clip, "x", "-o", tmp_path / "out.mp4", "--model", checkpoint_folder, "--steps", 1, "--anchors", 1,
             "--quiet", "--report", report]  # fmt: skip
    code, _, error = run(*words, "--backend", "onnxruntime")
    assert code == 2
    assert f"run `fairy build {checkpoint_folder} --backend onnxruntime --precision float32" in error
    command = error.partition("run `fairy ")[2].partition(" --store")[0].split()
    assert run(command[0], *command[2:])[0] == 0  # what the sentence says can be typed; `run` adds model and store
    assert run(*words, "--backend", "onnxruntime")[0] == 0
    digests = {row["graph"]: row["digest"] for row in json.loads(run("engines", "list", "--json")[1])}
    assert json.loads(report.read_text())["engine_digests"] == digests


@pytest.mark.slow
def test_an_interrupted_build_leaves_nothing_half_done(checkpoint_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "fairy.runtime.cli.main", "build", checkpoint_folder, "--graphs", "unet_frame"]
    process = subprocess.Popen(
        [str(word) for word in [*command, "--backend", "onnxruntime", "--store", store]],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while not list(store.glob("building/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.splitlines()[-1].startswith("error: The build was interrupted; what was finished before stays.")
    assert list(store.glob("building/*")) == list(store.glob("entries/*")) == []


@pytest.mark.slow
@pytest.mark.nightly
def test_onnxruntime_from_build_to_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model, really built, verified and run; frames near those of eager."""
    pytest.importorskip("onnxruntime")
    store, clip = tmp_path / "store", write_clip(tmp_path / "clip.mp4", make_frames(4), sound=False)
    torch.set_num_threads(1)
    assert cli.run(["build", "--backend", "onnxruntime", "--store", str(store), "--quiet"]) == 0
    capsys.readouterr()
    assert cli.run(["engines", "list", "--json", "--store", str(store)]) == 0
    digests = {row["graph"]: row["digest"] for row in json.loads(capsys.readouterr().out)}
    assert set(digests) == set(EDIT_GRAPHS)
    assert cli.run(["engines", "verify", digests["unet_frame"], "--store", str(store), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)["outputs"]
    assert 0 < max(output["relative"] for output in compared) < 1e-4
    reports = {}
    for backend in ("onnxruntime", "auto", "eager"):
        words = ["edit", clip, "make it sepia", "-o", tmp_path / f"{backend}.mp4", "--backend", backend, "--steps", 2,
                 "--store", store, "--report", tmp_path / "report.json", "--quiet"]  # fmt: skip
        assert cli.run([str(word) for word in words]) == 0, capsys.readouterr().err
        reports[backend] = json.loads((tmp_path / "report.json").read_text())
    assert reports["onnxruntime"]["engine_digests"] == reports["auto"]["engine_digests"] == digests
    assert reports["auto"]["backend"] == "onnxruntime"
    assert reports["auto"]["frames_sha256"] == reports["onnxruntime"]["frames_sha256"]
    assert (reports["eager"]["backend"], reports["eager"]["engine_digests"]) == ("eager", {})
    assert reports["onnxruntime"]["fallbacks"] == []
    by_engine, by_eager = (_pictures(tmp_path / f"{backend}.mp4") for backend in ("onnxruntime", "eager"))
    assert np.abs(by_engine - by_eager).mean() < 0.5  # levels of 255, after an encoder that may decide otherwise


def _pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float)
