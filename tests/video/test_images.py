"""A folder of pictures is read in natural order, upright, and refused where it is not one size."""

import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime.video import probe_images, read_images


def paint(path, value=0, size=(40, 30), **how):
    Image.new("RGB", size, (value, 100, 200)).save(path, **how)


def test_pictures_come_in_natural_order(tmp_path):
    for number in (10, 9, 2, 1, 100):
        paint(tmp_path / f"f{number}.png", number)
    (tmp_path / "notes.txt").write_text("not a picture")
    info = probe_images(tmp_path)
    assert [f.name for f in info.files] == ["f1.png", "f2.png", "f9.png", "f10.png", "f100.png"]
    assert (info.width, info.height, info.num_frames) == (40, 30, 5)
    assert [int(frame[0, 0, 0]) for frame in read_images(info)] == [1, 2, 9, 10, 100]
    assert [int(frame[0, 0, 0]) for frame in read_images(info, indices=[4, 1])] == [2, 100]
    assert [int(frame[0, 0, 0]) for frame in read_images(info, 1, 3)] == [2, 9]
    assert info.to_json()["files"][0] == "f1.png"


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "tif", "TIFF"])
def test_every_format_is_read(tmp_path, suffix):
    paint(tmp_path / f"a.{suffix}", 50)
    frame = next(read_images(probe_images(tmp_path)))
    assert frame.shape == (30, 40, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - (50, 100, 200)).max() <= 8


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new("RGB", (40, 30), (255, 255, 255)).convert(mode).save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    assert np.array_equal(next(read_images(probe_images(tmp_path))), np.full((30, 40, 3), 255))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_become_8_without_being_cut(tmp_path, ending):
    grey = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{ending}")
    info = probe_images(tmp_path)
    frame = next(read_images(info))
    assert np.abs(frame.astype(float) - grey[..., None] / 257).max() <= 0.5
    assert info.notes == ("The pictures have 16 bits a channel and are edited in 8.",)


def test_numbers_without_a_known_white_are_refused(tmp_path):
    Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif holds floating point numbers, .*; export it in 8 or 16 bits"):
        probe_images(tmp_path)


def test_dropped_transparency_is_told(tmp_path):
    paint(tmp_path / "1.png")
    Image.new("RGBA", (40, 30), (1, 2, 3, 4)).save(tmp_path / "2.png")
    assert probe_images(tmp_path).notes == ("The pictures have transparency: they are edited over black.",)


def test_hidden_files_and_folders_are_no_pictures(tmp_path):
    paint(tmp_path / "1.png")
    (tmp_path / "._1.png").write_bytes(b"of another system")
    (tmp_path / "2.png").mkdir()
    assert [file.name for file in probe_images(tmp_path).files] == ["1.png"]


def test_the_camera_s_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (40, 30))
    picture.paste((255, 0, 0), (0, 0, 40, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    info = probe_images(tmp_path)
    assert (info.width, info.height) == (30, 40)
    frame = next(read_images(info))
    assert np.array_equal(frame, np.rot90(np.asarray(picture), -1))


def test_what_is_not_one_size_is_refused_naming_the_first_that_differs(tmp_path):
    paint(tmp_path / "1.png")
    paint(tmp_path / "2.png", size=(40, 31))
    with pytest.raises(InputError, match=r"2\.png has 40×31 pixels, but 1\.png has 40×30"):
        probe_images(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "text", "truncated"])
def test_a_broken_picture_is_refused_by_name(tmp_path, content):
    paint(tmp_path / "a.png")
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(InputError, match=r"b\.png is not a whole picture"):
        probe_images(tmp_path)


def test_folders_without_pictures_and_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no pictures"):
        probe_images(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        probe_images(tmp_path / "missing")


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path):
    paint(tmp_path / "a.png")
    with pytest.raises(InputError, match="max_pixels = 1,199 allows"):
        probe_images(tmp_path, max_pixels=1199)
    assert probe_images(tmp_path, max_pixels=1200).num_frames == 1
    data = bytearray((tmp_path / "a.png").read_bytes())
    struct.pack_into(">II", data, 16, 30000, 30000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    (tmp_path / "b.png").write_bytes(data)
    with pytest.raises(InputError, match=r"b\.png has"):
        probe_images(tmp_path)


def test_progress_and_cancelling(tmp_path):
    for number in range(3):
        paint(tmp_path / f"{number}.png")
    told, cancel = [], threading.Event()
    info = probe_images(tmp_path, on_progress=told.append)
    assert told == [1, 2, 3]
    cancel.set()
    with pytest.raises(Cancelled):
        probe_images(tmp_path, cancel=cancel)
    with pytest.raises(Cancelled):
        list(read_images(info, cancel=cancel))
