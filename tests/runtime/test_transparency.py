"""The source's transparency comes back where the target can hold it, and a note says where it cannot."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.record.transparency import straight
from fairy.runtime.video import VideoWriter, probe, read_frames
from fairy.runtime.video.picture_folder import PictureFolder, linear
from tests.runtime.conftest import make_frames

FRAMES = make_frames(4, 48, 64)
PARAMS = EditParams("make it blue", num_inference_steps=1, anchors=2, micro_batch=2)


def opacity(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A ramp from nothing to all, another one in every frame."""
    ramp = np.clip(np.arange(width) * 6 - 40, 0, 255).astype(np.uint8)
    return np.stack([np.tile(np.roll(ramp, 3 * i), (height, 1)) for i in range(frames)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clear") / "source.mkv"
    pictures = np.concatenate([FRAMES, opacity(4)[..., None]], axis=3)
    with VideoWriter(path, width=64, height=48, fps=Fraction(25), codec="ffv1", alpha=True) as writer:
        writer.write(pictures)
    return path


def seen(path: Path) -> np.ndarray:
    """All frames as they are in a file or folder: [n, H, W, 4]."""
    if path.is_dir():
        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.iterdir())])
    if path.suffix == ".webp":
        with Image.open(path) as image:
            return np.stack([np.asarray([image.seek(i), image.convert("RGBA")][1]) for i in range(image.n_frames)])
    info = probe(path)
    assert info.has_alpha
    alphas = np.stack(list(read_frames(info, alpha=True)))
    return np.concatenate([np.stack(list(read_frames(info))), alphas], axis=3)


def over_black(pictures: np.ndarray) -> np.ndarray:
    return (pictures[..., :3].astype(int) * pictures[..., 3:] + 127) // 255


def test_a_file_with_transparency_is_read(source: Path) -> None:
    info = probe(source)
    assert info.has_alpha
    alphas = np.stack(list(read_frames(info, 1, 3, alpha=True)))
    assert np.array_equal(alphas[..., 0], opacity(4)[1:3])
    assert np.array_equal(np.stack(list(read_frames(info))), over_black(seen_raw(source)))


def seen_raw(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgba") for frame in file.decode(video=0)])


@pytest.mark.parametrize(
    ("out", "how", "near"),
    [
        ("out", {"codec": "png"}, 0),
        ("out.mkv", {"codec": "ffv1"}, 0),
        ("out.mkv", {"codec": "ffv1", "lossless": True}, 0),
        ("out.webp", {"lossless": True}, 0),
        ("out.webp", {}, 40),
        ("out.mov", {"codec": "prores"}, 12),
        ("out.webm", {}, 40),
        ("out.mkv", {"codec": "ffv1", "pixel_format": "bgra"}, 0),
    ],
)
def test_it_is_carried(editor: Editor, source: Path, tmp_path: Path, out: str, how: dict, near: int) -> None:
    report = editor.edit_file(source, tmp_path / out, PARAMS, **how)
    edited, alpha = editor.edit(source, PARAMS).frames, opacity(4)
    assert not any("is not carried" in note for note in report.notes)
    found = seen(tmp_path / out)
    if (tmp_path / out).suffix in (".mkv", ".mov", ".webm"):
        found = seen_raw(tmp_path / out) if near == 0 else found
    assert np.abs(found[..., 3].astype(int) - alpha).max() <= near
    if near == 0:
        expected = np.stack([straight(*pair) for pair in zip(edited, alpha, strict=True)])
        assert np.array_equal(found[..., 3], alpha)
        assert np.array_equal(found[alpha > 0], expected[alpha > 0])  # WebP does not keep what nobody sees
        opaque = alpha == 255
        assert np.array_equal(found[opaque][:, :3], edited[opaque])


@pytest.mark.parametrize(
    ("out", "how"),
    [
        ("out.mp4", {}),
        ("out.mp4", {"codec": "vp9"}),
        ("out.mkv", {"codec": "ffv1", "pixel_format": "bgr0"}),
        ("out.webm", {"lossless": True}),
        ("out.gif", {}),
    ],
)
def test_what_holds_none_is_told(editor: Editor, source: Path, tmp_path: Path, out: str, how: dict) -> None:
    report = editor.edit_file(source, tmp_path / out, PARAMS, **how)
    assert f"The source's transparency is not carried into {out}." in report.notes
    assert "The source has transparency: it is edited over black." in report.notes


def test_a_folder_of_pictures_and_another_size(editor: Editor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, picture in enumerate(np.concatenate([FRAMES, opacity(4)[..., None]], axis=3)):
        Image.fromarray(picture).save(tmp_path / "in" / f"{i}.png")
    asked = EditParams("make it blue", num_inference_steps=1, anchors=2, long_side=32)
    editor.edit_file(tmp_path / "in", tmp_path / "out", asked, codec="png")
    found = seen(tmp_path / "out")
    assert found.shape == (4, 24, 32, 4)
    halved = opacity(4).reshape(4, 24, 2, 32, 2).mean((2, 4))
    assert np.abs(found[..., 3] - halved).mean() < 2  # another kernel than the mean
    saved = editor.edit(tmp_path / "in", asked).save(tmp_path / "out.mkv", codec="ffv1", fps=25)
    assert np.array_equal(seen_raw(saved), found)


def test_colours_over_black_are_the_edit() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 256, 3), np.uint8)
    alpha = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    dark = (frame.astype(int) * alpha[..., None] // 255).astype(np.uint8)  # no brighter than it can be seen
    made = straight(dark, alpha)
    assert np.array_equal(made[..., 3], alpha)
    assert np.abs(over_black(made) - dark).max() <= 1
    assert np.array_equal(made[:, 255, :3], dark[:, 255])
    assert not made[:, 0, :3].any()


def test_exr_is_linear_light_of_the_same_levels(editor: Editor, source: Path, tmp_path: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    editor.edit_file(source, tmp_path / "out", PARAMS, codec="exr")
    edited, alpha = editor.edit(source, PARAMS).frames, opacity(4)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.exr" for i in range(4)]
    for file, frame, opaque in zip(files, edited, alpha, strict=True):
        with OpenEXR.File(str(file)) as picture:
            pixels = picture.channels()["RGBA"].pixels
        assert pixels.dtype == np.float16
        whole = opaque == 255
        light = pixels[whole][:, :3].astype(np.float64)
        shown = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
        assert np.array_equal(np.round(shown * 255), frame[whole])
        assert np.abs(pixels[..., 3].astype(float) * 255 - opaque).max() < 0.1
    with PictureFolder(tmp_path / "plain", num_frames=1, kind="exr") as folder:
        folder.write(FRAMES[0])
    with OpenEXR.File(str(tmp_path / "plain" / "000000.exr")) as picture:
        assert np.array_equal(picture.channels()["RGB"].pixels, linear(FRAMES[0]).astype(np.float16))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"codec": "exr", "lossless": True}, "lossless = True does not fit codec = exr"),
        ({"codec": "exr", "bit_depth": 10}, "bit_depth = 10 does not fit codec = exr"),
        ({"codec": "png", "pixel_format": "rgb48"}, "pixel_format = 'rgb48' does not fit codec = png"),
    ],
)
def test_folders_have_no_samples_to_choose(editor: Editor, source: Path, tmp_path: Path, how: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        editor.edit_file(source, tmp_path / "out", PARAMS, **how)
