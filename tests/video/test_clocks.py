"""Where a file's clock begins is not where its video begins; how long frames stay is never touched."""

from fractions import Fraction

import av
import numpy as np
import pytest

from fairy.runtime.video import probe, read_frames

pytestmark = pytest.mark.slow
TICK = Fraction(1, 90000)
WRAP = 1 << 33
COUNT = 12


def first_times(path):
    """Of the pictures and of the sound, in seconds, as they are stored."""
    with av.open(str(path)) as container:
        times = {"video": [], "audio": []}
        for packet in container.demux():
            if packet.pts is not None:
                times[packet.stream.type].append(packet.pts * packet.time_base)
    return min(times["video"]), min(times["audio"], default=None)


@pytest.mark.parametrize(
    "start", [25 * 3600 * 90000, 10 * 3600 * 90000, 126000, WRAP - 5000, WRAP - 30 * 90000, WRAP - 3600 * 6]
)
@pytest.mark.parametrize("to", ["o.mp4", "o.mkv", "o.ts"])
def test_mpeg_ts_may_begin_to_count_anywhere(make, copy_video, tmp_path, to, start):
    """Also where its 33 bits begin anew on the way; pictures and sound stay in step."""
    pts = tuple(range(start, start + COUNT * 3600, 3600))
    how = {"rate": Fraction(25), "time_base": TICK, "pts": pts, "options": {"bf": "0"}, "audio": ("ac3",)}
    source = make("s.ts", **how, audio_start_s=start * TICK, muxer={"mpegts_copyts": "1"})
    info = probe(source)
    assert info.num_frames == len(list(read_frames(info))) == COUNT
    assert 0 <= info.start_s < 0.1
    copy = probe(copy_video(info, tmp_path / to).path)
    assert (copy.num_frames, copy.frame_rate, copy.variable_frame_rate) == (COUNT, Fraction(25), False)
    assert copy.start_s == pytest.approx(info.start_s, abs=0.001)
    pictures, sound = first_times(tmp_path / to)
    before = first_times(source)
    assert float(pictures - sound) == pytest.approx(float(before[0] - before[1]), abs=0.001)
    assert min(pictures, sound) == 0


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"bf": "2", "g": "12"}), ("mpeg4", {"bf": "2"}), ("libx264", {"bf": "0"}), ("mpeg4", {})],
    ids=["h264-b", "mpeg4-b", "h264", "mpeg4"],
)
def test_avi_keeps_its_rate_through_pictures_that_are_stored_early(make, copy_video, tmp_path, codec, options):
    pts = tuple(range(24))
    how = {"time_base": Fraction(1, 25), "rate": Fraction(25), "pts": pts, "options": options}
    info = probe(make("b.avi", codec=codec, **how))
    assert info.pts.tolist() == list(pts)
    assert (info.frame_rate, info.variable_frame_rate) == (25, False)
    assert probe(copy_video(info, tmp_path / "o.avi").path).pts.tolist() == list(pts)


def test_an_empty_place_in_avi_stays_empty(make):
    pts = (0, 1, 2, 4, 5, 6)
    how = {"time_base": Fraction(1, 25), "rate": Fraction(25), "pts": pts, "options": {"bf": "0"}}
    assert probe(make("gap.avi", codec="mpeg4", **how)).pts.tolist() == list(pts)


def test_the_only_frame_of_mpeg_ts_has_no_made_up_rate(make, copy_video, tmp_path):
    info = probe(make("one.ts", pts=(0,)))
    assert info.num_frames == 1
    assert info.frame_rate is None
    copy = probe(copy_video(info, tmp_path / "o.mp4").path)
    assert 0.01 < copy.duration_s < 0.1


NOT_CODED = bytes.fromhex("000001b6504f")  # a picture of MPEG-4 that says: nothing new
USER_DATA, PICTURE = b"\x00\x00\x01\xb2", b"\x00\x00\x01\xb6"


def write_packed_divx(path, pictures):
    """As DivX 5: a B picture lies in the packet of the one stored before it, an empty packet where it is due."""
    coder = av.CodecContext.create("mpeg4", "w")
    coder.height, coder.width, coder.pix_fmt = *pictures.shape[1:3], "yuv420p"
    coder.time_base, coder.framerate, coder.options = Fraction(1, 25), Fraction(25), {"bf": "1", "g": "300"}
    coded = []
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        coded += [bytes(packet) for packet in coder.encode(frame)]
    coded += [bytes(packet) for packet in coder.encode(None)]
    header, _, rest = coded[0].partition(PICTURE)
    coded[0] = header.partition(USER_DATA)[0] + USER_DATA + b"DivX503b1393p\x00" + PICTURE + rest
    packets = []
    for data in coded:
        if data[data.index(PICTURE) + 4] >> 6 == 2:  # a B picture
            packets[-1] += data
            packets.append(NOT_CODED)
        else:
            packets.append(data)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        stream.codec_context.codec_tag = "DX50"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            container.mux(packet)
    return packets


def test_packed_divx_keeps_every_picture_at_its_time(copy_video, tmp_path):
    pictures = np.stack([np.full((48, 64, 3), 20 + 9 * number, np.uint8) for number in range(24)])
    packets = write_packed_divx(tmp_path / "packed.avi", pictures)
    assert packets.count(NOT_CODED) > 5
    info = probe(tmp_path / "packed.avi")
    assert info.pts.tolist() == list(range(24))
    assert (info.frame_rate, info.variable_frame_rate) == (25, False)
    seen = np.array([frame.mean() for frame in read_frames(info)])
    assert np.abs(seen - pictures.mean((1, 2, 3))).max() < 4
    assert probe(copy_video(info, tmp_path / "o.mp4").path).num_frames == 24
