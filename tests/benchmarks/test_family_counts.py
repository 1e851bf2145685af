"""Counts of models of other families against diffusers' own networks and against a real edit's bank."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fairy.benchmarks.family_counts import ANCHORS, STEPS, count_graph, count_model
from fairy.benchmarks.public_models import SMALL
from fairy.engines.eager import EagerBackend
from fairy.runtime import EditParams
from fairy.runtime.cli import main as cli
from fairy.runtime.editor import Editor

CPU, META = torch.device("cpu"), torch.device("meta")
SIZE = (32, 64)


def test_operations_are_those_of_diffusers_network() -> None:
    """Without anchors the graph does what the pipeline's transformer does with a source beside the target."""
    model = SMALL["klein-4b"](META, torch.bfloat16)
    network, tokens = model.network("transformer"), 2 * (SIZE[0] // 16) * (SIZE[1] // 16)
    config = network.config
    plain = type(network).from_config(config).to(META, torch.bfloat16)
    text = torch.empty(1, model.text_tokens, config.joint_attention_dim, dtype=torch.bfloat16, device=META)
    with FlopCounterMode(display=False) as counter:
        plain(
            hidden_states=torch.empty(1, tokens, config.in_channels, dtype=torch.bfloat16, device=META),
            encoder_hidden_states=text,
            timestep=torch.empty(1, dtype=torch.bfloat16, device=META),
            img_ids=torch.zeros(tokens, 4, device=META),
            txt_ids=torch.zeros(model.text_tokens, 4, device=META),
        )
    counted = count_graph(model, model.graphs()["unet"], SIZE, frames=1).flops
    last = 2 * tokens // 2 * config.in_channels * (config.num_attention_heads * config.attention_head_dim)
    assert counted == counter.get_total_flops() - last, "the source's half of the output is not computed"


@pytest.mark.parametrize("name", SMALL)
def test_the_bank_is_as_large_as_a_real_one(name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)
    model = SMALL[name](CPU, torch.float32)
    backend = EagerBackend(model, CPU, torch.float32)
    with Editor(model, backend, device=CPU, dtype=torch.float32) as editor:
        report = editor.edit(
            frames, EditParams("snow", anchors=ANCHORS, num_inference_steps=STEPS, long_side=64)
        ).report
    counted = count_model(name, SMALL[name](META, torch.bfloat16), SIZE)
    assert report.bank_bytes == 2 * counted.whole_bank_bytes, "float32 has two times the bytes"
    assert str(counted.name) in counted.table()


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "counts", "--model", "dreamlite-mobile"]) == 0
    told = capsys.readouterr().out
    assert "frame step" in told
    assert "H200" in told
    assert cli.run(["bench", "counts", "--model", "dreamlite-mobile", "--out", "x.json"]) == 2
    assert "knows no dreamlite-mobile" in capsys.readouterr().err
