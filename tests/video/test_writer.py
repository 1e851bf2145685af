"""A copy of a video keeps its clock, sound, colours and shape, in every container."""

import hashlib
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from fairy.kernels.errors import InputError
from fairy.runtime.video import Clock, ColorTags, VideoWriter, probe, read_frames

pytestmark = pytest.mark.slow


MS = Fraction(1, 1000)
SMALL_MKV = {"time_base": MS, "pts": tuple(range(0, 400, 40)), "options": {"bf": "0"}}
NTSC = {"rate": Fraction(30000, 1001), "time_base": Fraction(1001, 30000), "pts": tuple(range(40))}
UNEVEN = (0, 700, 1000, 1001, 4000, 4100, 4200, 9000, 9512, 20000, 20100)


@pytest.mark.parametrize(
    ("name", "to", "how"),
    [
        ("s.mp4", "o.m4v", {}),
        ("s.mp4", "o.mp4", NTSC),
        ("s.mp4", "o.mp4", {"pts": UNEVEN}),
        ("s.mp4", "o.mov", {"pts": (512, 1024, 1536, 2048), "muxer": {"movie_timescale": "15360"}}),
        ("s.mkv", "o.mp4", NTSC),
        ("s.mkv", "o.mov", {"time_base": MS, "pts": (40, 73, 107, 500, 501, 900)}),
        ("s.ts", "o.mp4", {"time_base": Fraction(1, 90000), "pts": tuple(range(9000, 99000, 3003))}),
        (
            "s.avi",
            "o.mp4",
            {"codec": "mpeg4", "time_base": Fraction(1, 25), "rate": Fraction(25), "pts": tuple(range(30))},
        ),
    ],
    ids=["constant", "ntsc", "variable", "late-start", "ntsc-mkv", "variable-mkv", "ts", "avi"],
)
def test_every_time_stamp_survives_exactly(make, copy_video, seconds, tmp_path, name, to, how):
    source = probe(make(name, **how))
    writer = copy_video(source, tmp_path / to)
    copy = probe(writer.path)
    assert seconds(copy) == seconds(source)
    assert copy.duration_s == pytest.approx(source.duration_s, abs=1e-9)
    assert writer.notes == []


@pytest.mark.parametrize("name", ["s.mkv", "s.webm"])
@pytest.mark.parametrize("pts", [tuple(range(0, 1000, 40)), (40, 73, 107, 500, 501, 900)], ids=["even", "uneven"])
def test_milliseconds_survive_matroska(make, copy_video, seconds, tmp_path, name, pts):
    source = probe(make("s.mkv", time_base=MS, pts=pts, rate=Fraction(25)))
    writer = copy_video(source, tmp_path / name)
    assert seconds(probe(writer.path)) == seconds(source)
    assert writer.notes == []


def test_times_are_rounded_to_a_coarser_clock_and_reported(make, copy_video, seconds, tmp_path):
    source = probe(make("s.mp4"))
    writer = copy_video(source, tmp_path / "o.mkv")
    assert all(abs(a - b) <= MS / 2 for a, b in zip(seconds(probe(writer.path)), seconds(source), strict=True))
    assert any("1/1000 s" in note for note in writer.notes)


def test_frames_closer_than_the_container_s_clock_are_refused(make, tmp_path):
    source = probe(make("s.mp4", pts=(0, 1, 2, 512)))
    with pytest.raises(InputError, match=r"less than 1 ms apart; write \.mp4"):
        VideoWriter(tmp_path / "o.mkv", width=96, height=64, source=source)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
def test_avi_and_ts_keep_a_constant_rate(make, copy_video, seconds, tmp_path, rate):
    source = probe(make("s.mp4", rate=rate, time_base=1 / rate, pts=tuple(range(30))))
    for name in ("o.avi", "o.ts"):
        copy = probe(copy_video(source, tmp_path / name).path)
        assert copy.num_frames == 30
        assert copy.frame_rate == rate
        assert all(abs(a - b) < Fraction(1, 90000) for a, b in zip(seconds(copy), seconds(source), strict=True))


def test_avi_refuses_a_variable_rate(make, tmp_path):
    source = probe(make("s.mp4", pts=UNEVEN))
    with pytest.raises(InputError, match=r"variable frame rate; write \.mp4"):
        VideoWriter(tmp_path / "o.avi", width=96, height=64, source=source)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "to", "how"),
    [
        ("s.mp4", "o.mp4", {"audio": ("aac", "aac")}),
        ("s.mp4", "o.mov", {"audio": ("aac",)}),
        ("s.mkv", "o.mkv", {"audio": ("libopus", "aac")}),
        ("s.mp4", "o.mkv", {"audio": ("aac", "ac3")}),
        ("s.mkv", "o.mp4", {"audio": ("aac", "libopus", "flac")}),
        ("s.mkv", "o.webm", {"audio": ("libopus",)}),
        ("s.mov", "o.mov", {"audio": ("pcm_s16le",)}),
        ("s.mp4", "o.avi", {"audio": ("libmp3lame",)}),
        ("s.mp4", "o.ts", {"audio": ("ac3",)}),
        ("s.mp4", "o.mp4", {"audio": ("aac",), "audio_start_s": Fraction(1, 10)}),
        ("s.mp4", "o.mp4", {"audio": ("aac",), "pts": tuple(range(1024, 20000, 512))}),
    ],
    ids=lambda value: "+".join(value["audio"]) if isinstance(value, dict) else None,
)
def test_sound_is_copied_packet_by_packet(make, copy_video, packets, tmp_path, name, to, how):
    source = make(name, **how)
    result = copy_video(source, tmp_path / to).path
    for before, after in zip(packets(source), packets(result), strict=True):
        assert [data for _, data in after] == [data for _, data in before]
        late = after[0][0] - before[0][0] if to in ("o.ts", "o.avi") else 0
        assert all(abs(a - b - late) <= MS for (a, _), (b, _) in zip(after, before, strict=True))


def test_sound_of_mpeg_ts_changes_only_its_wrapping(make, copy_video, packets, tmp_path):
    """AAC carries a header of 7 bytes on each packet there, and none in MP4."""
    there = copy_video(make("s.mp4", audio=("aac",)), tmp_path / "o.ts").path
    back = copy_video(there, tmp_path / "o.mp4").path
    plain = [data for _, data in packets(make("s.mp4", audio=("aac",)))[0]]
    assert [data[7:] for _, data in packets(there)[0]] == plain
    assert [data for _, data in packets(back)[0]] == plain


@pytest.mark.parametrize("to", ["o.mp4", "o.mkv", "o.ts"])
def test_sound_of_joined_files_goes_on_where_its_time_goes_back(make, copy_video, packets, tmp_path, to):
    """As pictures do: two recordings of a camera joined by `cat`."""
    part = copy_video(make("s.mp4", audio=("aac",)), tmp_path / "part.ts").path
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)
    source = probe(joined)
    assert source.num_frames == 48
    steps = np.diff(source.pts)
    assert steps.max() <= steps.min() + 1, "the second part's pictures go on at the same pace"
    (once,), (both,) = packets(part), packets(copy_video(source, tmp_path / to).path)
    assert len(both) == 2 * len(once)
    times = [at for at, _ in both]
    assert all(later > earlier for earlier, later in pairwise(times))
    assert float(times[-1] - times[0]) == pytest.approx(2 * float(once[-1][0] - once[0][0]), abs=0.1)


def test_sound_keeps_its_exact_start_in_mp4(make, copy_video, packets, tmp_path):
    source = make("s.mp4", audio=("aac",), audio_start_s=Fraction(1, 3), pts=tuple(range(777, 20000, 512)))
    result = copy_video(source, tmp_path / "o.mp4").path
    assert packets(result) == packets(source)


def test_pictures_stay_in_step_with_sound_that_begins_before_them(make, copy_video, seconds, tmp_path):
    """The 1024 samples that AAC starts with must not push the pictures by 21 ms in Matroska."""
    source = probe(make("s.mp4", audio=("aac",), pts=tuple(range(0, 15360, 1536)), rate=Fraction(10)))
    assert seconds(probe(copy_video(source, tmp_path / "o.mkv").path)) == seconds(source)
    writer = copy_video(source, tmp_path / "o.ts")
    assert any("21 ms later" in note for note in writer.notes)


@pytest.mark.parametrize(
    ("audio", "to", "words"),
    [
        ("aac", "o.webm", "(aac) cannot be kept in WebM; write .mkv"),
        ("libopus", "o.avi", "(opus) cannot be kept in AVI"),
    ],
)
def test_sound_that_does_not_fit_is_refused_with_a_remedy(make, tmp_path, audio, to, words):
    source = probe(make("s.mkv", audio=(audio,), time_base=MS, pts=tuple(range(0, 900, 40)), rate=Fraction(25)))
    with pytest.raises(InputError) as caught:
        VideoWriter(tmp_path / to, width=96, height=64, source=source)
    assert words in str(caught.value)
    assert "stream 1" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_source_starts_at_0_with_its_sound(make, copy_video, packets, tmp_path):
    source = make("s.mp4", audio=("aac",), pts=tuple(range(0, 90 * 512, 512)))
    result = copy_video(source, tmp_path / "o.mp4", span=(30, 60)).path
    info = probe(result)
    assert info.num_frames == 30
    assert info.start_s == 0
    assert info.duration_s == pytest.approx(1)
    kept = [(at - 1, data) for at, data in packets(source)[0] if 1 <= at < 2]
    assert len(kept) in (46, 47)
    assert packets(result)[0] == kept


def test_subtitles_go_where_they_fit_and_are_reported_elsewhere(copy_video, packets, tmp_path):
    source = tmp_path / "s.mkv"
    with av.open(str(source), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width, video.height, video.time_base = 96, 64, MS
        with av.open(str(_subtitles(tmp_path)), "r") as text:
            lines = output.add_stream_from_template(text.streams[0])
            for index in range(50):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = index * 40, MS
                for packet in video.encode(frame):
                    output.mux(packet)
            for packet in text.demux():
                if packet.dts is not None:
                    packet.stream = lines
                    output.mux(packet)
        for packet in video.encode():
            output.mux(packet)
    assert probe(source).other == ("subtitle:subrip",)
    kept = copy_video(source, tmp_path / "o.mkv")
    assert packets(kept.path, "subtitle") == packets(source, "subtitle") != [[]]
    assert kept.notes == []
    lost = copy_video(source, tmp_path / "o.avi")
    assert lost.notes == ["Subtitle stream 1 (subrip) cannot be kept in AVI and is left out."]


def _subtitles(folder):
    path = folder / "s.srt"
    path.write_text("1\n00:00:00,200 --> 00:00:00,900\nHello\n\n2\n00:00:01,000 --> 00:00:01,500\nthere\n\n")
    return path


@pytest.mark.parametrize("to", ["o.mp4", "o.mkv"])
def test_titles_and_chapters_are_kept(make, copy_video, tmp_path, to):
    how = {"time_base": MS, "pts": tuple(range(0, 900, 40)), "metadata": {"title": "A day"}}
    source = make("s.mkv", **how, chapters=((0, 400, "Morning"), (400, 880, "Evening")))
    writer = copy_video(source, tmp_path / to)
    with av.open(str(writer.path)) as container:
        assert container.metadata["title"] == "A day"
        found = [(c["start"] * c["time_base"], c["metadata"]["title"]) for c in container.chapters()]
    assert found == [(0, "Morning"), (Fraction(2, 5), "Evening")]
    again = copy_video(writer.path, tmp_path / f"again_{to}")
    assert again.notes == writer.notes == []


def test_a_second_video_is_left_out_and_reported(make, copy_video, tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as output, av.open(str(make("s.mkv", **SMALL_MKV))) as source:
        copies = [output.add_stream_from_template(source.streams.video[0], opaque=True) for _ in range(2)]
        for packet in source.demux():
            for copy in copies:
                if packet.pts is not None:
                    twin = av.Packet(bytes(packet))
                    twin.pts, twin.dts, twin.time_base = packet.pts, packet.pts, packet.time_base
                    twin.is_keyframe, twin.stream = packet.is_keyframe, copy
                    output.mux(twin)
    assert probe(path).other == ("video:h264",)
    writer = copy_video(path, tmp_path / "o.mp4")
    assert writer.notes == ["Second video stream 1 (h264) cannot be kept in MP4 and is left out."]
    assert probe(writer.path).num_frames == probe(path).num_frames


@pytest.mark.parametrize(
    ("to", "tags"),
    [
        ("o.mp4", ColorTags(6, 6, 6)),
        ("o.mp4", ColorTags(5, 5, 5)),
        ("o.mp4", ColorTags(1, 1, 1)),
        ("o.mp4", ColorTags(1, 1, 1, full=True)),
        ("o.mp4", ColorTags(9, 9, 14)),
        ("o.mkv", ColorTags(1, 1, 1)),
        ("o.webm", ColorTags(1, 1, 1)),
        ("o.webm", ColorTags(6, 6, 6, full=True)),
    ],
    ids=["601", "601-pal", "709", "709-full", "2020", "mkv-709", "webm-709", "webm-601-full"],
)
def test_colours_and_their_tags_survive(tmp_path, tags, to):
    frames = np.empty((3, 64, 96, 3), np.uint8)
    colours = [(200, 60, 40), (30, 180, 90), (20, 40, 220), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    for place, colour in enumerate(colours):
        frames[:, :, place * 16 : place * 16 + 16] = colour
    with VideoWriter(tmp_path / to, width=96, height=64, fps=25, color=tags, crf=2) as writer:
        writer.write(frames)
    info = probe(tmp_path / to)
    assert info.color == tags
    assert not info.color_assumed
    middle = next(read_frames(info))[20:40, 8::16].mean(0)
    assert np.abs(middle - np.array(colours)).max() <= 2


def test_an_untagged_source_is_written_with_the_tags_that_were_assumed(make, copy_video, tmp_path):
    copy = probe(copy_video(make("u.mp4"), tmp_path / "o.mp4").path)
    assert copy.color == ColorTags(6, 6, 6)
    assert not copy.color_assumed


@pytest.mark.parametrize(
    ("to", "size"),
    [("o.mp4", (97, 64)), ("o.mp4", (96, 65)), ("o.mp4", (33, 31)), ("o.mp4", (1, 1)), ("o.mp4", (2, 2)),
     ("o.webm", (33, 31)), ("o.avi", (33, 31)), ("o.mkv", (97, 64)), ("o.ts", (97, 65))],
)  # fmt: skip
def test_odd_sizes_lose_nothing(tmp_path, size, to):
    width, height = size
    with VideoWriter(tmp_path / to, width=width, height=height, fps=25) as writer:
        writer.write(np.full((12, height, width, 3), (200, 60, 40), np.uint8))
    info = probe(tmp_path / to)
    assert (info.width, info.height, info.num_frames) == (width, height, 12)
    assert info.pix_fmt == ("yuv420p" if size == (2, 2) else "yuv444p")
    assert np.abs(next(read_frames(info)).astype(int) - (200, 60, 40)).max() < 6


def test_the_shape_of_a_pixel_survives(make, copy_video, tmp_path):
    for to in ("o.mp4", "o.mkv"):
        assert probe(
            copy_video(make("s.mp4", aspect=Fraction(4, 3)), tmp_path / to).path
        ).sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize("to", ["o.mp4", "o.mov", "o.mkv", "o.webm", "o.avi", "o.ts"])
def test_the_same_frames_give_the_same_bytes(make, copy_video, tmp_path, to):
    audio = ("libopus",) if to == "o.webm" else ("libmp3lame",)
    source = make("s.mkv", audio=audio, time_base=MS, pts=tuple(range(0, 900, 40)), rate=Fraction(25))
    digests = {
        hashlib.sha256(copy_video(source, tmp_path / f"{turn}{to}").path.read_bytes()).digest() for turn in range(2)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("fps", [24, 29.97, Fraction(30000, 1001), 12.5, 0.5])
def test_frames_without_a_clock_get_one(tmp_path, seconds, fps):
    exact = Fraction(30000, 1001) if fps == 29.97 else Fraction(fps)
    for name in ("o.mp4", "o.mkv"):
        with VideoWriter(tmp_path / name, width=32, height=32, fps=fps) as writer:
            for _ in range(2):
                writer.write(np.zeros((4, 32, 32, 3), np.uint8))
        info = probe(tmp_path / name)
        exact_s = [i / exact for i in range(8)]
        assert all(abs(a - b) <= MS / 2 for a, b in zip(seconds(info), exact_s, strict=True))
        assert info.frame_rate == exact
        assert name != "o.mp4" or seconds(info) == exact_s


@pytest.mark.parametrize("name", ["o.mp4", "o.mov", "o.mkv"])
@pytest.mark.parametrize("last", [1, 40, 500])
def test_the_last_frame_stays_as_long_as_it_should(tmp_path, name, last):
    """Also where the encoder stores another frame last (B-frames)."""
    clock = Clock(np.array([0, 40, 80]), MS, last)
    with VideoWriter(tmp_path / name, width=32, height=32, clock=clock) as writer:
        writer.write(np.zeros((3, 32, 32, 3), np.uint8))
    assert probe(tmp_path / name).duration_s == pytest.approx(0.08 + last / 1000)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"path": "nowhere/o.mp4"}, "does not exist"),
        ({"path": "o.wmv"}, ".mp4, .m4v, .mov, .mkv, .webm, .avi, .ts"),
        ({"path": "noname"}, "no extension"),
        ({"path": "folder.mp4"}, "is a folder"),
        ({"path": "s.mp4"}, "is the input file"),
        ({"fps": 0}, "above 0"),
        ({"fps": float("nan")}, "above 0"),
        ({"crf": 60}, "crf = 60"),
        ({"width": 0}, "0×64"),
        ({"codec": "h266"}, "h266"),
        ({"path": "o.webm", "codec": "h264"}, "not held by WebM"),
        ({"source_range": (5, 5)}, "5 to 5"),
        ({"source_range": (0, 999)}, "0 to 999"),
        ({"source": None}, "give fps"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_written_is_refused_before_anything_is_computed(make, tmp_path, how, words):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "s.mp4").write_bytes(make("s.mp4").read_bytes())
    before = sorted(tmp_path.iterdir())
    options = {"path": "o.mp4", "width": 96, "height": 64, "source": probe(tmp_path / "s.mp4"), **how}
    with pytest.raises(InputError) as caught:
        VideoWriter(tmp_path / options.pop("path"), **options)
    assert words in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
