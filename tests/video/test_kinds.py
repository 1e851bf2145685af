"""Kinds of files that cameras, recorders and tools make: each is read as players show it."""

import shutil
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.video import Reading, VideoWriter, decoder, probe, probe_images, read_frames, read_images
from fairy.runtime.video.decoder import open_source
from fairy.runtime.video.filters import filtered
from fairy.runtime.video.info import MAX_PIXELS, ColorTags
from fairy.runtime.video.opened import rgb
from fairy.runtime.video.reader import _seek
from tests.video.conftest import RED, picture

pytestmark = pytest.mark.slow
MS = Fraction(1, 1000)
RATE = {"rate": Fraction(25), "time_base": Fraction(1, 25), "pts": tuple(range(8))}
SMALL = {"size": (128, 96), **RATE}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("k.webm", {"codec": "libvpx", "options": {"deadline": "realtime"}}),
        ("k.mkv", {"codec": "mpeg2video"}),
        ("k.ts", {"codec": "mpeg2video"}),
        ("k.mpg", {"codec": "mpeg1video"}),
        ("k.3gp", {"codec": "h263"}),
        ("k.flv", {"codec": "flv"}),
        ("k.flv", {"codec": "libx264", "options": {"bf": "0"}}),
        ("k.avi", {"codec": "msmpeg4"}),
        ("k.avi", {"codec": "msmpeg4v2"}),
        ("k.wmv", {"codec": "wmv1"}),
        ("k.wmv", {"codec": "wmv2"}),
        ("k.mkv", {"codec": "ffv1"}),
        ("k.avi", {"codec": "rawvideo"}),
        ("k.mov", {"codec": "qtrle", "pix_fmt": "rgb24"}),
        ("k.dv", {"codec": "dvvideo", "size": (720, 576)}),
        ("k.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("k.apng", {"codec": "apng", "pix_fmt": "rgb24"}),
        ("k.y4m", {"codec": "rawvideo"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["codec"],
)
def test_it_is_decoded(make, name, how):
    info = probe(make(name, **{**SMALL, "options": {}, **how}))
    frames = list(read_frames(info))
    assert info.num_frames == len(frames) == 8
    middle = frames[4][info.height * 3 // 4 :, 8:-8].reshape(-1, 3).mean(0)
    assert np.abs(middle - RED).max() < (40 if name == "k.gif" else 8)
    steps = np.diff(info.pts) * float(info.time_base)
    assert np.allclose(steps, 0.04, atol=0.0011)


def test_an_unfinished_recording_says_that_its_index_is_missing(make, tmp_path):
    data = make("s.mp4").read_bytes()
    end = data.index(b"moov") - 4
    (tmp_path / "s.mp4").write_bytes(data[:end])
    with pytest.raises(InputError, match=r"lacks its index \(moov\)"):
        probe(tmp_path / "s.mp4")


# -- pictures that move -------------------------------------------------------------------------------------------

HIDDEN = (250, 10, 240)


def moving(path, mode="RGB", count=4):
    pictures = [Image.fromarray(picture(i, 64, 48)).convert(mode) for i in range(count)]
    if mode == "RGBA":
        for image in pictures:
            image.paste((*HIDDEN, 0), (0, 0, 32, 24))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[40, 80, 40, 120][:count], lossless=True)
    return path


@pytest.mark.parametrize("name", ["m.webp", "m.gif", "m.png"])
def test_a_moving_picture_is_a_video(tmp_path, name):
    info = probe(moving(tmp_path / name))
    assert info.num_frames == 4
    times = [int(p) * info.time_base for p in info.pts]
    assert [float(t - times[0]) for t in times] == pytest.approx([0, 0.04, 0.12, 0.16])
    assert info.duration_s == pytest.approx(0.28)
    for index, frame in enumerate(read_frames(info)):
        expected = picture(index, 64, 48)
        assert np.abs(frame[36:].astype(int) - expected[36:]).mean() < (12 if name == "m.gif" else 1)
    writer = VideoWriter(tmp_path / "o.mp4", width=64, height=48, source=info)
    for frame in read_frames(info):
        writer.write(frame)
    writer.close()
    assert probe(tmp_path / "o.mp4").num_frames == 4


def test_moving_pictures_and_pages_in_a_folder_are_refused(tmp_path):
    for name, words in (("a.webp", "4 pictures"), ("a.png", "4 pictures"), ("a.tiff", "pages")):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        moving(folder / name)
        with pytest.raises(InputError, match=words):
            probe_images(folder)


@pytest.mark.parametrize("name", ["t.webp", "t.png", "folder"])
def test_what_is_hidden_by_transparency_stays_hidden(tmp_path, name):
    if name == "folder":
        (tmp_path / name).mkdir()
        moving(tmp_path / name / "1.png", "RGBA", count=1)
        info = probe_images(tmp_path / name)
        frame = next(read_images(info))
    else:
        info = probe(moving(tmp_path / name, "RGBA"))
        frame = next(read_frames(info))
    assert frame[:24, :32].max() == 0
    assert np.abs(frame[40:] - np.array(RED)).max() <= 1
    assert any("transparency" in note for note in info.notes)


def test_the_transparency_of_webm_is_seen(tmp_path):
    """It is stored beside the pictures, where plain decoders do not look."""
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as output:
        video = output.add_stream("libvpx-vp9", rate=25, options={"deadline": "realtime", "cpu-used": "8"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuva420p"
        video.metadata["alpha_mode"] = "1"
        for index in range(3):
            pixels = np.dstack([picture(index, 64, 48), np.full((48, 64), 255, np.uint8)])
            pixels[:24, :32] = (*HIDDEN, 0)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="yuva420p")
            frame.pts = index
            output.mux(video.encode(frame))
        output.mux(video.encode())
    info = probe(path)
    assert any("transparency" in note for note in info.notes)
    frames = list(read_frames(info))
    assert len(frames) == 3
    assert frames[1][4:20, 4:28].max() < 30
    assert np.abs(frames[1][40:] - np.array(RED)).max() < 8


# -- what is shown of a picture -----------------------------------------------------------------------------------


def element(identity, payload):
    return bytes.fromhex(identity) + bytes([0x80 | len(payload)]) + payload


def cropped(make, path, edges):
    """A Matroska file that asks not to show (left, right, top, bottom) pixels."""
    data = bytearray(make("c.mkv", **SMALL, options={"bf": "0"}).read_bytes())
    ids = ("54cc", "54dd", "54bb", "54aa")
    crop = b"".join(element(identity, bytes([edge])) for identity, edge in zip(ids, edges, strict=True))
    at = 0
    for identity in ("18538067", "1654ae6b", "ae", "e0"):  # segment, tracks, track, its picture
        if identity == "1654ae6b":
            at = data.index(bytes.fromhex(identity), at) + 4  # the index names it first
        at = data.index(bytes.fromhex(identity), at) + len(identity) // 2
        width = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + width], "big") + len(crop)
        data[at : at + width] = size.to_bytes(width, "big")
        at += width
    data[at:at] = crop
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("edges", [(0, 0, 16, 16), (8, 24, 2, 0)])
def test_what_matroska_crops_is_not_edited(make, tmp_path, edges):
    info = probe(cropped(make, tmp_path / "crop.mkv", edges))
    left, right, top, bottom = edges
    assert (info.width, info.height) == (128 - left - right, 96 - top - bottom)
    whole = next(read_frames(replace(info, crop=(0, 0, 0, 0), width=128, height=96)))
    assert np.array_equal(next(read_frames(info)), whole[top : 96 - bottom, left : 128 - right])


def with_clap(make, path, width, height):
    """An MP4 file whose clean aperture is centred."""
    data = bytearray(make("c.mp4", **SMALL, options={"bf": "0"}).read_bytes())
    box = b"clap" + b"".join(int(v).to_bytes(4, "big") for v in (width, 1, height, 1, 0, 1, 0, 1))
    box = (len(box) + 4).to_bytes(4, "big") + box
    entry = data.index(b"avc1", data.index(b"stsd")) - 4
    end = entry + int.from_bytes(data[entry : entry + 4], "big")
    grown = [entry]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        grown.append(data.index(kind) - 4)
    for at in grown:
        data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + len(box)).to_bytes(4, "big")
    path.write_bytes(bytes(data[:end]) + box + bytes(data[end:]))
    return path


def test_the_clean_aperture_is_what_is_edited(make, tmp_path):
    info = probe(with_clap(make, tmp_path / "clap.mp4", 96, 64))
    assert (info.width, info.height) == (96, 64)
    whole = next(read_frames(replace(info, crop=(0, 0, 0, 0), width=128, height=96)))
    assert np.array_equal(next(read_frames(info)), whole[16:80, 16:112])


def test_fields_become_pictures_where_that_is_asked_for(make, tmp_path):
    how = {**SMALL, "options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}}
    clip = make("i.mkv", **how)
    plain, told = probe(clip), Reading(deinterlace=True)
    assert any("--deinterlace" in note for note in plain.notes)
    whole = probe(clip, reading=told)
    assert not any("interlaced" in note for note in whole.notes)
    fields, pictures = list(read_frames(plain)), list(read_frames(whole))
    assert len(fields) == len(pictures) == 8
    assert whole.pts.tolist() == plain.pts.tolist()
    assert all(np.abs(a[72:].astype(int) - b[72:]).max() < 8 for a, b in zip(fields, pictures, strict=True))
    picked = list(read_frames(whole, indices=[3, 7]))
    assert all(np.array_equal(a, pictures[i]) for a, i in zip(picked, (3, 7), strict=True))


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_mapped_where_that_is_asked_for(make, transfer, name):
    how = {"codec": "libx265", "pix_fmt": "yuv420p10le", "tags": (9, 9, transfer, 1), "matrix": 9}
    options = {"preset": "ultrafast", "x265-params": "log-level=none"}
    clip = make("h.mp4", **RATE, **how, options=options)
    with pytest.raises(InputError, match="--hdr tonemap"):
        probe(clip)
    info = probe(clip, reading=Reading(tonemap=True))
    assert any(name in note and "BT.709" in note for note in info.notes)
    assert (info.color.matrix, info.color.primaries, info.color.transfer) == (1, 1, 1)
    frames = list(read_frames(info))
    assert len(frames) == 8
    bar, red = frames[0][20, 0], frames[0][56, 48]
    assert bar.min() > 150, "white stays bright"
    assert int(red[0]) > int(red[1]) + 20, "red stays red"
    with VideoWriter(clip.with_name(f"out{name}.mp4"), width=96, height=64, source=info) as writer:
        writer.write(np.stack(frames))
    assert probe(writer.path).pix_fmt == "yuv420p"


def pq_code(nits):
    """SMPTE ST 2084 at 10 bit in limited range."""
    y = (np.asarray(nits, float) / 10000) ** (2610 / 16384)
    signal = ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)
    return np.round(signal * 876 + 64).astype(np.uint16)


def test_tone_mapping_keeps_every_step_of_a_grey_scale_and_leaves_it_grey():
    """Shares of white as docs/files.md has them beside BT.2390's, for a peak that nobody told: 10 000 cd/m²."""
    nits = [0.1, 1, 5, 20, 50, 100, 203, 400, 1000, 4000, 10000]
    frame = av.VideoFrame(16 * len(nits), 16, "yuv420p10le")
    luma, *chroma = frame.planes
    rows = np.zeros((16, luma.line_size // 2), np.uint16)
    rows[:, : frame.width] = np.repeat(pq_code(nits), 16)
    luma.update(rows.tobytes())
    for plane in chroma:
        plane.update(np.full((8, plane.line_size // 2), 512, np.uint16).tobytes())
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, 16, 9
    frame.time_base = Fraction(1, 25)
    [(out, _)] = filtered(iter([(frame, 0)]), Reading(tonemap=True))
    found = rgb(out, ColorTags(1, 1, 1, full=False), 0, flipped=False)[8, 8::16].astype(float)
    assert np.ptp(found, axis=1).max() <= 2
    assert (np.diff(found[:, 1]) > 5).all()
    share = (found[:, 1] / 255) ** 2.4
    assert share[-1] > 0.98
    assert share[nits.index(203)] == pytest.approx(0.30, abs=0.02)


# -- damage -------------------------------------------------------------------------------------------------------

LONG = {"rate": Fraction(10), "time_base": Fraction(1, 90000), "pts": tuple(range(0, 60 * 9000, 9000))}


def with_lost_packets(make, path, part=0.5, count=3):
    data = make("l.ts", **LONG, options={"g": "10", "bf": "0"}).read_bytes()
    pieces = [data[at : at + 188] for at in range(0, len(data), 188)]
    pictures = [i for i, p in enumerate(pieces) if (p[1] & 0x1F, p[2]) == (1, 0) and not p[1] & 0x40]
    middle = int(len(pictures) * part)
    for index in pictures[middle : middle + count]:
        pieces[index] = b""
    path.write_bytes(b"".join(pieces))
    return path


def test_lost_packets_of_a_broadcast_are_concealed_and_told(make, tmp_path):
    path = with_lost_packets(make, tmp_path / "l.ts")
    info = probe(path)
    assert 58 <= info.num_frames == len(list(read_frames(info))) <= 60
    assert any("is damaged in" in note and "--strict" in note for note in info.notes)
    with pytest.raises(InputError, match=r"damaged at \d\.\d\d s"):
        probe(path, reading=Reading(strict=True))


def test_damage_outside_of_what_is_edited_does_not_matter(make, tmp_path):
    path = with_lost_packets(make, tmp_path / "l.ts", part=0.5)
    for span in ((0.0, 1.5), (4.8, None)):
        info = probe(path, reading=Reading(strict=True, start_s=span[0], end_s=span[1]))
        assert not any("damaged" in note for note in info.notes)
    mp4 = make("l.mp4", **LONG, options={"g": "10", "bf": "0"})
    data = bytearray(mp4.read_bytes())
    at = data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 3 // 4
    data[at : at + 900] = bytes(900)
    (tmp_path / "l.mp4").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        probe(tmp_path / "l.mp4", reading=Reading(strict=True))
    info = probe(tmp_path / "l.mp4", reading=Reading(end_s=2.0))
    assert info.ends_early
    assert info.num_frames == 21
    assert len(list(read_frames(info, 0, 20))) == 20


def test_what_comes_before_a_change_of_size_can_be_edited(make, tmp_path):
    pieces = [make("z.ts", **LONG, size=size).read_bytes() for size in ((96, 64), (64, 96))]
    path = tmp_path / "two.ts"
    path.write_bytes(b"".join(pieces))
    with pytest.raises(InputError, match=r"96×64 to 64×96 at 6\.00 s; .*--end 6\.00"):
        probe(path)
    info = probe(path, reading=Reading(end_s=6.0))
    assert (info.num_frames, info.width, info.ends_early) == (60, 96, True)
    assert len(list(read_frames(info))) == 60


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("g.mp4", {"options": {"g": "20", "bf": "3", "x264-params": "open-gop=1"}}),
        (
            "g.mkv",
            {"options": {"g": "15", "bf": "2"}, "time_base": Fraction(1, 1000), "pts": tuple(range(0, 9000, 40))},
        ),
        ("g.webm", {"codec": "libvpx-vp9", "options": {"g": "20", "deadline": "realtime", "cpu-used": "8"}}),
        ("g.mov", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
    ],
)
def test_a_late_start_is_sought_and_gives_the_same_frames(make, name, how):
    info = probe(make(name, **{"rate": Fraction(25), "time_base": Fraction(1, 25), "pts": tuple(range(220)), **how}))
    slow = replace(info, keys=())
    for start in (110, 151, 200, 219):
        assert _seek(info, start) is not None
        assert _seek(slow, start) is None
        fast = list(read_frames(info, start))
        assert all(np.array_equal(a, b) for a, b in zip(fast, read_frames(slow, start), strict=True))


SLOW = {"rate": Fraction(10), "time_base": Fraction(1, 10), "pts": tuple(range(220))}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("s.mp4", {"options": {"g": "20", "bf": "3", "x264-params": "open-gop=1"}}),
        ("s.mkv", {"options": {"g": "15", "bf": "2"}}),
        ("s.webm", {"codec": "libvpx-vp9", "options": {"g": "20", "deadline": "realtime", "cpu-used": "8"}}),
        ("s.mov", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
    ],
)
def test_what_lies_before_a_late_start_is_told_by_packets_and_not_decoded(make, tmp_path, monkeypatch, name, how):
    path, late = make(name, **{**SLOW, **how}), Reading(start_s=15.0)
    whole, found = probe(path), probe(path, reading=late)
    assert found.pts.tolist() == whole.pts.tolist()
    assert (found.color, found.rotation, found.last_duration, found.notes) == (
        whole.color, whole.rotation, whole.last_duration, whole.notes,
    )  # fmt: skip
    last = [list(read_frames(info, 200)) for info in (whole, found)]
    assert all(np.array_equal(a, b) for a, b in zip(*last, strict=True))
    assert found.keys == whole.keys
    with open_source(path, MAX_PIXELS, late) as source, (tmp_path / "told").open("wb") as out:
        skipped = decoder._skipped(source)
        assert skipped is not None
        assert 100 < skipped.number < 150
        wrong = replace(skipped, stamps=[at for i, at in enumerate(skipped.stamps) if i != skipped.number + 5])
        for made, agrees in ((wrong, False), (skipped, True)):
            monkeypatch.setattr(decoder, "_skipped", lambda source, made=made: made)
            assert (decoder._late_frames(source, decoder._Counted(out.fileno())) is not None) is agrees


def test_damage_before_a_late_start_is_not_met_and_later_damage_is_told_as_ever(make, tmp_path):
    content = make("s.mp4", **SLOW, options={"g": "10", "bf": "0"}).read_bytes()
    middle = content.index(b"mdat") + 4
    length = int.from_bytes(content[middle - 8 : middle - 4], "big")
    hurt = {}
    for name, part in (("early", 0.3), ("late", 0.85)):
        hurt[name], at = tmp_path / f"{name}.mp4", middle + int(part * length)
        hurt[name].write_bytes(content[:at] + bytes(3000) + content[at + 3000 :])
    found = probe(hurt["early"], reading=Reading(start_s=15.0, strict=True))
    assert (found.num_frames, found.notes) == (220, probe(make("s.mp4", **SLOW, options={"g": "10", "bf": "0"})).notes)
    for path, reading in ((hurt["early"], Reading(strict=True)), (hurt["late"], Reading(start_s=15.0, strict=True))):
        with pytest.raises(InputError, match="is damaged"):
            probe(path, reading=reading)
    late, whole = probe(hurt["late"], reading=Reading(start_s=15.0)), probe(hurt["late"])
    assert any("damaged in" in note for note in whole.notes)
    assert (late.notes, late.pts.tolist(), late.mended) == (whole.notes, whole.pts.tolist(), whole.mended)


def test_a_seek_that_finds_something_else_begins_at_the_beginning(make):
    info = probe(make("q.mp4", **{**LONG, "pts": tuple(range(0, 120 * 9000, 9000))}, options={"g": "10", "bf": "0"}))
    wrong = replace(info, keys=tuple(key + 3 for key in info.keys))
    assert _seek(wrong, 100) is not None
    fast, slow = (next(read_frames(each, 100)) for each in (wrong, replace(info, keys=())))
    assert np.array_equal(fast, slow)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("f.webm", {"codec": "libvpx", "options": {"deadline": "realtime"}}),
        ("f.mpg", {"codec": "mpeg1video"}),
        ("f.wmv", {"codec": "wmv2"}),
        ("f.flv", {"codec": "flv"}),
        ("f.mkv", {"codec": "ffv1"}),
        ("f.mov", {"codec": "qtrle", "pix_fmt": "rgb24"}),
        ("f.dv", {"codec": "dvvideo", "size": (720, 576)}),
        ("f.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("f.apng", {"codec": "apng", "pix_fmt": "rgb24"}),
        ("f.webp", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_bytes_end_in_a_video_or_a_sentence(make, tmp_path, name, how):
    clip = tmp_path / name
    if name == "f.webp":
        moving(clip)
    else:
        shutil.copy(make(name, **{**SMALL, "options": {}, **how}), clip)
    data, rng = clip.read_bytes(), np.random.default_rng(7)
    for _ in range(3):
        bad = np.frombuffer(data, np.uint8).copy()
        bad[rng.integers(0, len(bad), 25)] = rng.integers(0, 256, 25)
        clip.write_bytes(bad.tobytes())
        said = ""
        try:
            info = probe(clip)
            assert len(list(read_frames(info))) == info.num_frames
        except (InputError, MachineError) as error:
            said = str(error)
        assert "\n" not in said
