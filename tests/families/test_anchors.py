"""The other families on anchors: the bank's path is joint attention over everything that is read, under a mask."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DreamLiteUNetModel, Flux2Transformer2DModel
from torch import Tensor

from fairy.export.families import load_edit_model
from fairy.export.model import EditModel
from tests.families.folders import HIDDEN, write_klein

ANCHORS, HEIGHT, WIDTH = 2, 4, 6


def _inputs(model: EditModel, text: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Two anchors and a third frame."""
    draw = torch.Generator().manual_seed(seed)
    size = model.size_multiple // model.vae_factor
    shape = (1, ANCHORS + 1, 2 * model.latent_channels, HEIGHT * size, WIDTH * size)
    return {
        "sample": torch.randn(shape, generator=draw),
        "timestep": torch.full((ANCHORS + 1,), 700.0),
        "text": torch.randn(text, generator=draw),
    }


@torch.inference_mode()
def _by_bank(model: EditModel, inputs: dict[str, Tensor], **how: str) -> Tensor:
    """Phase A of the anchors, then phase B of the third frame against what they handed out."""
    graphs = model.graphs(**how)  # type: ignore[call-arg]
    anchor, frame = graphs["unet_anchor"], graphs["unet_frame"]
    first = (inputs["sample"][:, :ANCHORS], inputs["timestep"][:ANCHORS], inputs["text"])
    output, *emitted = model.build(anchor)(*first)
    bank = dict(zip((t.name for t in anchor.outputs[1:]), emitted, strict=True))
    context = [
        bank[name].flatten(1, 2).unsqueeze(1) for layer in frame.layers if layer.segments for name in layer.emitted
    ]
    names = [t.name for t in frame.inputs[3:]]
    assert names == [n for layer in frame.layers if layer.segments for n in layer.context(0)]
    last = model.build(frame)(inputs["sample"][:, ANCHORS:], inputs["timestep"][ANCHORS:], inputs["text"], *context)
    return torch.cat([output, last[0]], dim=1)[0]


def _read(tokens: dict[str, list[int]], handed_out: list[str]) -> Tensor:
    """Who may see whom, [S, S]: every frame all of its own, and what the anchors hand out."""
    count = 1 + max(place for places in tokens.values() for place in places)
    mask = torch.zeros(count, count, dtype=torch.bool)
    for frame in range(ANCHORS + 1):
        own = [p for name, places in tokens.items() if name.endswith(str(frame)) for p in places]
        seen = own + [p for a in range(ANCHORS) for kind in handed_out for p in tokens[f"{kind}{a}"]]
        mask[torch.tensor(own)[:, None], torch.tensor(seen)] = True
    return mask


@pytest.mark.parametrize("handed_out", [["target"], ["target", "source"]])
def test_klein_reads_anchors_as_one_masked_sequence(klein_folder: Path, handed_out: list[str]) -> None:
    """diffusers' own transformer over all tokens of all frames, under a mask."""
    model = load_edit_model(klein_folder)
    words, places, frames = 5, HEIGHT * WIDTH, ANCHORS + 1
    inputs = _inputs(model, (1, words, 3 * HIDDEN))
    ours = _by_bank(model, inputs, anchor_tokens="both" if len(handed_out) == 2 else "target")
    theirs = Flux2Transformer2DModel.from_pretrained(klein_folder / "transformer").eval()
    target, source = (t[0].flatten(2).transpose(1, 2) for t in inputs["sample"].chunk(2, dim=2))
    row, column = (t.reshape(-1) for t in torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij"))
    zero = torch.zeros_like(row)
    ids = {n: torch.stack([zero + t, row, column, zero], dim=1) for n, t in (("target", 0), ("source", 10))}
    of_text = torch.zeros(words, 4, dtype=torch.long)
    of_text[:, 3] = torch.arange(words)
    tokens, at = {}, 0
    for kind, length in (("text", words), ("target", places), ("source", places)):
        for frame in range(frames):
            tokens[f"{kind}{frame}"] = list(range(at, at + length))
            at += length
    with torch.inference_mode():
        told = theirs(
            hidden_states=torch.cat([target.flatten(0, 1), source.flatten(0, 1)])[None],
            encoder_hidden_states=inputs["text"].repeat(1, frames, 1),
            timestep=torch.tensor([0.7]),
            img_ids=torch.cat([ids["target"].repeat(frames, 1), ids["source"].repeat(frames, 1)]),
            txt_ids=of_text.repeat(frames, 1),
            joint_attention_kwargs={"attention_mask": _read(tokens, handed_out)[None, None]},
            return_dict=False,
        )[0]
    expected = told[0, : frames * places].unflatten(0, (frames, places)).transpose(1, 2).unflatten(2, (HEIGHT, WIDTH))
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


class _Joint:
    """An attention processor that takes all frames of a batch as one masked sequence, in plain arithmetic."""

    def __init__(self, name: str, handed_out: list[str]) -> None:
        self._name, self._handed_out = name, handed_out

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        frames, count, _ = hidden_states.shape
        read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(read), attn.to_v(read)
        dim = q.shape[-1] // attn.heads
        q, k, v = (t.unflatten(-1, (-1, dim)) for t in (q, k, v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        k, v = (t.expand(-1, -1, attn.heads, -1) for t in (k, v))
        mask = None
        if encoder_hidden_states is None:
            width = 2 * round((count / 2 * WIDTH / HEIGHT) ** 0.5)  # of both halves
            left = torch.arange(count) % width < width // 2
            sides = (("target", left), ("source", ~left))
            tokens = {
                f"{name}{f}": [f * count + p for p in side.nonzero()[:, 0].tolist()]
                for name, side in sides
                for f in range(frames)
            }
            mask = _read(tokens, self._handed_out)
            q, k, v = (t.flatten(0, 1)[None] for t in (q, k, v))
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask)
        out = out.transpose(1, 2).flatten(2)
        return attn.to_out[0](out.reshape(frames, count, -1))


@pytest.mark.parametrize("handed_out", [["target"], ["target", "source"]])
def test_dreamlite_reads_anchors_as_one_masked_sequence(dreamlite_folder: Path, handed_out: list[str]) -> None:
    """diffusers' own UNet with attention over all frames, under a mask."""
    model = load_edit_model(dreamlite_folder)
    inputs = _inputs(model, (1, 1, 7, HIDDEN))
    ours = _by_bank(model, inputs, anchor_tokens="both" if len(handed_out) == 2 else "target")
    unet = DreamLiteUNetModel.from_pretrained(dreamlite_folder / "unet").eval()
    unet.set_attn_processor({name: _Joint(name, handed_out) for name in unet.attn_processors})
    target, source = inputs["sample"][0].chunk(2, dim=1)
    height, width = target.shape[2:]
    with torch.inference_mode():
        told = unet(
            torch.cat([target, source], dim=3),
            inputs["timestep"],
            inputs["text"][0].expand(ANCHORS + 1, -1, -1),
            added_cond_kwargs={"time_ids": torch.tensor([[width * 8.0, height * 8.0]])},
            return_dict=False,
        )[0][..., :width]
    torch.testing.assert_close(ours, told, atol=2e-5, rtol=1e-4)


def test_anchors_at_positions_of_their_own_are_told_apart(tmp_path: Path) -> None:
    """Reading anchors elsewhere changes results; one anchor that is the frame itself gives the same values to both."""
    model = load_edit_model(write_klein(tmp_path / "model"))
    inputs = _inputs(model, (1, 5, 3 * HIDDEN))
    shared, own = (_by_bank(model, inputs, anchor_positions=how) for how in ("shared", "own"))
    assert not torch.allclose(shared, own, atol=1e-3)
