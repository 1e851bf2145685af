"""Masks of what is named: what a random CLIPSeg finds is what transformers finds, and a mask like any other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.inputs.segmenter import load_segmenter
from fairy.runtime.record.progress import Monitor
from tests.conftest import write_tokenizer
from tests.runtime.conftest import make_frames, write_clip

FRAMES = make_frames(5, 52, 70)
TEXT = "the red car"


def params(**changes: object) -> EditParams:
    return EditParams("make it blue", **{"num_inference_steps": 1, "anchors": 2, "micro_batch": 2, **changes})


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIPSeg whose finds are neither nothing nor everything."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("clipseg")
    torch.manual_seed(4)
    like = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    words = {**like, "vocab_size": 190, "max_position_embeddings": 16, "bos_token_id": 188, "eos_token_id": 189}
    config = CLIPSegConfig(
        text_config=words,
        vision_config={**like, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        conditional_layer=2,
    )
    model = CLIPSegForImageSegmentation(config).eval()
    for weight in (*model.decoder.parameters(), *model.clip.text_model.parameters()):
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    torch.nn.init.normal_(model.clip.text_model.embeddings.token_embedding.weight, std=3.0)  # texts differ
    torch.nn.init.normal_(model.clip.text_projection.weight)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seeing(checkpoint_folder: Path, clipseg: Path) -> Iterator[Editor]:
    with Editor.from_pretrained(checkpoint_folder, device="cpu", segmenter=clipseg) as made:
        yield made


def found_by_transformers(clipseg: Path, frame: np.ndarray) -> np.ndarray:
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    processor, model = CLIPSegProcessor.from_pretrained(clipseg), CLIPSegForImageSegmentation.from_pretrained(clipseg)
    with torch.no_grad():
        logits = model(**processor(text=[TEXT], images=[Image.fromarray(frame)], return_tensors="pt")).logits
    size, whole = frame.shape[:2], logits.reshape(1, 1, *logits.shape[-2:])
    return torch.nn.functional.interpolate(whole, size, mode="bilinear")[0, 0].sigmoid().numpy()


def test_it_finds_what_transformers_finds(clipseg: Path) -> None:
    segmenter = load_segmenter(clipseg, torch.device("cpu"), {})
    for frame in FRAMES[:2]:
        found, likely = segmenter(frame, TEXT), found_by_transformers(clipseg, frame)
        clear = abs(likely - 0.5) > 1e-5
        assert np.array_equal(found[clear], (likely >= 0.5)[clear])
        assert 0.02 < found.mean() < 0.98
    other = segmenter(FRAMES[0], "a dog")
    assert not np.array_equal(other, segmenter(FRAMES[0], TEXT))


def test_it_is_a_mask_like_any_other(seeing: Editor, clipseg: Path, tmp_path: Path) -> None:
    segmenter = load_segmenter(clipseg, torch.device("cpu"), {})
    (tmp_path / "masks").mkdir()
    found = [segmenter(frame, TEXT) for frame in FRAMES]
    for i, mask in enumerate(found):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{i}.png")
    given = seeing.edit(FRAMES, params(mask=tmp_path / "masks", mask_feather=0, shots=(3,)))
    named = seeing.edit(FRAMES, params(mask_from=TEXT, mask_feather=0, shots=(3,)))
    assert np.array_equal(named.frames, given.frames)
    assert np.array_equal(named.frames[~np.stack(found)], FRAMES[~np.stack(found)])
    assert not np.array_equal(named.frames, FRAMES)
    assert named.report.params["mask_from"] == TEXT


def test_pictures_of_masks_are_removed(seeing: Editor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seeing.edit(FRAMES, params(mask_from=TEXT))
    gc.collect()
    assert not list(tmp_path.glob("fairy-*/masks"))


@pytest.mark.slow
def test_two_workers_and_what_goes_on_later(
    seeing: Editor, checkpoint_folder: Path, clipseg: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", make_frames(10))
    asked = params(mask_from=TEXT, num_inference_steps=2)
    whole = seeing.edit_file(clip, tmp_path / "whole.mp4", asked)
    with Editor.from_pretrained(checkpoint_folder, device="cpu", segmenter=clipseg, workers=2) as crew:
        assert crew.edit_file(clip, tmp_path / "shared.mp4", asked).frames_sha256 == whole.frames_sha256
        from tests.runtime.workers.test_controls import interrupt

        interrupt(seeing, clip, tmp_path / "again.mp4", asked)
        resumed = crew.edit_file(clip, tmp_path / "again.mp4", asked, resume=True)
    assert resumed.resumed_batches == 1
    assert resumed.frames_sha256 == whole.frames_sha256


def test_other_weights_are_another_edit(seeing: Editor, clipseg: Path) -> None:
    def identity(asked: EditParams) -> object:
        return seeing._identity(seeing._open(FRAMES, asked, Monitor(None, None), None, None).plan)["segmenter"]

    assert identity(params()) is None
    assert identity(params(mask_from=TEXT)) == load_segmenter(clipseg, torch.device("cpu"), {}).digest


def test_what_is_missing_is_told(editor: Editor, checkpoint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mask_from = 'the red car' needs a segmenter; name a CLIPSeg"):
        editor.edit(FRAMES, params(mask_from=TEXT))
    with pytest.raises(InputError, match="goes without a mask"):
        params(mask_from=TEXT, mask="mask.png")
    with pytest.raises(InputError, match="names nothing"):
        params(mask_from=" ")
    with pytest.raises(InputError, match="neither a folder"):
        Editor.from_pretrained(checkpoint_folder, device="cpu", segmenter=tmp_path / "nothing")
    with pytest.raises(InputError, match="of the kind None, not clipseg"):
        Editor.from_pretrained(checkpoint_folder, device="cpu", segmenter=checkpoint_folder / "unet")
