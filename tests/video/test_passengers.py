"""What travels beside the pictures reads back as what it was, or a note says what became of it."""

from fractions import Fraction

import av
import numpy as np
import pytest

from fairy.kernels.errors import InputError
from fairy.runtime.video import VideoWriter, probe
from tests.video import matrix

pytestmark = pytest.mark.slow
MS = Fraction(1, 1000)
MKV = {"time_base": MS, "pts": tuple(range(0, 1000, 40)), "rate": Fraction(25)}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return matrix.everything(tmp_path_factory.mktemp("all") / "all.mkv")


@pytest.fixture(scope="module")
def copies(everything):
    return {name: matrix.copy_into(everything, everything.with_name(f"o.{name}")) for name in matrix.CONTAINERS}


def test_the_page_about_files_says_what_is_done(everything, copies):
    tables = matrix.PAGE.read_text().split(matrix.BEGIN)[1].split(matrix.END)[0]
    assert tables == matrix.tables(everything, copies), "python -m tests.video.matrix writes it anew"


@pytest.mark.parametrize("container", matrix.CONTAINERS)
def test_every_kind_of_stream_reads_back_as_itself_or_as_what_the_notes_say(everything, copies, container):
    writer = copies[container]
    source, back = matrix.streams_of(everything), matrix.streams_of(writer.path)
    told = matrix.outcomes(writer, everything)
    kept = [index for index in source if index > 0 and told[index] != "left out"]
    others = sorted(index for index in back if index > 0)
    covers = [index for index in others if back[index][0] in ("cover", "attachment")]
    others = [index for index in others if index not in covers] + covers  # AVI and MP4 put covers elsewhere
    assert len(kept) == len(others)
    for index, other in zip(kept, others, strict=True):
        kind, codec, packets = source[index]
        if told[index] == "as it is":
            assert back[other][:2] == (kind, codec)
            assert container == "ts" or back[other][2] == packets
        else:
            assert back[other][:2] == (kind, told[index].removeprefix("as "))
            assert back[other][2]


def decoded(path, index):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(container.streams[index])]
        planar = container.streams[index].codec_context.format.is_planar
    return np.concatenate([f.T if planar else f.reshape(-1, 2) for f in frames])


@pytest.mark.parametrize(
    ("codec", "to", "becomes"),
    [
        ("flac", "o.mov", "pcm_s16le"),
        ("pcm_u8", "o.mp4", "pcm_s16le"),
        ("pcm_s16be", "o.mkv", "pcm_s16be"),
        ("pcm_s16le", "o.mp4", "pcm_s16le"),
        ("pcm_mulaw", "o.mp4", "pcm_s16le"),
    ],
)
def test_sound_without_loss_stays_so(make, copy_video, tmp_path, codec, to, becomes):
    how = {"time_base": Fraction(1, 25), "rate": Fraction(25), "pts": tuple(range(20))}
    name = "s.mkv" if codec in ("flac", "pcm_s16le") else "s.mov"
    source = make(name, audio=(codec,), **how)
    writer = copy_video(source, tmp_path / to)
    (sound,) = [(kind, name) for kind, name, _ in matrix.streams_of(writer.path).values() if kind == "audio"]
    assert sound == ("audio", becomes)
    before, after = (decoded(path, 1).astype(np.int64) for path in (source, writer.path))
    if codec == "pcm_u8":
        before = (before - 128) * 256
    assert np.array_equal(after, before)


@pytest.mark.parametrize("layout", ["stereo", "5.1"])
@pytest.mark.parametrize("name", ["s.mkv", "s.avi"])
def test_pcm_without_a_layout_goes_into_mp4(tmp_path, name, layout):
    """Matroska and AVI say how many channels there are, MP4 must say which."""
    with av.open(str(tmp_path / name), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width, video.height = 64, 48
        sound = output.add_stream("pcm_s16le", rate=48000, layout=layout)
        for index in range(5):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = index
            output.mux(video.encode(frame))
        output.mux(video.encode())
        channels = 6 if layout == "5.1" else 2
        block = av.AudioFrame.from_ndarray(
            np.arange(9600 * channels, dtype=np.int16)[None] % 999, format="s16", layout=layout
        )
        block.sample_rate, block.pts = 48000, 0
        output.mux(sound.encode(block))
    writer = matrix.copy_into(tmp_path / name, tmp_path / "o.mp4")
    with av.open(str(writer.path)) as container:
        assert container.streams.audio[0].codec_context.layout.name == layout
    assert np.array_equal(decoded(tmp_path / "o.mp4", 1), decoded(tmp_path / name, 1))


def with_timecode(path):
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width, video.height = 64, 48
        video.metadata["timecode"] = "10:00:00:00"
        for index in range(10):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = index
            output.mux(video.encode(frame))
        output.mux(video.encode())
    return path


@pytest.mark.parametrize("to", ["o.mov", "o.mp4", "o.mkv"])
def test_a_timecode_never_ends_a_job(tmp_path, to):
    source = with_timecode(tmp_path / "s.mov")
    writer = matrix.copy_into(source, tmp_path / to)
    with av.open(str(writer.path)) as container:
        codes = [s.metadata.get("timecode") for s in container.streams.data]
    assert codes == ([] if to == "o.mkv" else ["10:00:00:00"])
    assert writer.notes == (
        ["Data stream 1 (unknown codec) cannot be kept in Matroska and is left out."] if to == "o.mkv" else []
    )


def test_sound_that_nobody_decodes_is_left_out_beside_sound_that_stays(make, copy_video, packets, tmp_path):
    """As the second track of recent iPhones, 'apac'; by itself it is refused as all sound that cannot be kept."""
    data = make("s.mov", audio=("aac", "pcm_s16le")).read_bytes()
    path = tmp_path / "s.mov"
    path.write_bytes(data.replace(b"sowt", b"apac"))
    assert probe(path).audio == ("aac", "unknown codec")
    writer = copy_video(path, tmp_path / "o.mp4")
    assert "Sound stream 2 (unknown codec) cannot be kept in MP4 and is left out." in writer.notes
    assert packets(writer.path)[0] == packets(path)[0]
    alone = tmp_path / "alone.mov"
    alone.write_bytes(make("a.mov", audio=("pcm_s16le",)).read_bytes().replace(b"sowt", b"apac"))
    with pytest.raises(InputError, match="remove the sound first"):
        copy_video(alone, tmp_path / "o.mp4")


def test_packets_that_the_container_refuses_are_left_out_and_counted(make, tmp_path):
    """What only shows on the way does not end the job either."""
    source = make("s.mp4", audio=("aac",))
    broken = tmp_path / "s.ts"
    matrix.copy_into(source, broken)
    data = bytearray(broken.read_bytes())
    sound = [at for at in range(0, len(data), 188) if data[at + 1] & 0x1F == 1 and data[at + 2] == 1]
    for at in sound[len(sound) // 2 :][:2]:
        start = data.find(b"\xff\xf1", at, at + 188)
        if start > 0:
            data[start : start + 2] = b"\x00\x00"
    broken.write_bytes(data)
    info = probe(broken)
    with VideoWriter(tmp_path / "o.mp4", width=96, height=64, source=info) as writer:
        for _ in range(info.num_frames):
            writer.write(np.zeros((64, 96, 3), np.uint8))
    assert probe(tmp_path / "o.mp4").num_frames == info.num_frames
    assert any("could not be written into MP4, the first at" in note for note in writer.notes)


@pytest.mark.parametrize("to", ["o.mp4", "o.mov", "o.mkv"])
def test_quicktime_s_keys_stay(make, copy_video, tmp_path, to):
    keys = {
        "com.apple.quicktime.make": "Maker",
        "com.apple.quicktime.model": "Model 7",
        "com.apple.quicktime.location.ISO6709": "+48.1374+011.5755+519.000/",
    }
    source = make("k.mov", metadata={**keys, "title": "A day"}, muxer={"movflags": "use_metadata_tags"})
    with av.open(str(copy_video(source, tmp_path / to).path)) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    assert {key.lower(): value for key, value in keys.items()}.items() <= found.items()
    assert found["title"] == "A day"


@pytest.mark.parametrize(
    ("span", "chapters"),
    [
        ((0, 10), [(0, 400, "Morning")]),
        ((5, 20), [(0, 200, "Morning"), (200, 600, "Evening")]),
        ((12, 25), [(0, 480, "Evening")]),
    ],
)
@pytest.mark.parametrize("to", ["o.mkv", "o.mp4"])
def test_chapters_are_cut_with_the_video(make, copy_video, tmp_path, to, span, chapters):
    source = make("c.mkv", **MKV, chapters=((0, 400, "Morning"), (400, 960, "Evening")))
    with av.open(str(copy_video(source, tmp_path / to, span=span).path)) as container:
        found = [
            (c["start"] * c["time_base"] * 1000, c["end"] * c["time_base"] * 1000, c["metadata"]["title"])
            for c in container.chapters()
        ]
    assert [title for *_, title in found] == [title for *_, title in chapters]
    for got, want in zip(found, chapters, strict=True):
        assert abs(got[0] - want[0]) <= 1
        assert abs(got[1] - want[1]) <= 1


def test_covers_are_no_second_video(everything, copies):
    assert probe(everything).other[-1] == "cover"
    assert "Cover art stream 17 (png) cannot be kept in QuickTime and is left out." in copies["mov"].notes


def test_the_default_one_of_two_videos_is_edited(make, tmp_path):
    path = tmp_path / "two.mkv"
    names = [make("s.mkv", **MKV, size=size) for size in ((96, 64), (64, 48))]
    with av.open(str(path), "w") as output:
        sources = [av.open(str(name)) for name in names]
        copies = [output.add_stream_from_template(s.streams.video[0], opaque=True) for s in sources]
        copies[1].disposition = 1
        for source, copy in zip(sources, copies, strict=True):
            for packet in source.demux():
                if packet.pts is not None:
                    packet.stream = copy
                    output.mux(packet)
            source.close()
    info = probe(path)
    assert (info.width, info.height) == (64, 48)
    writer = matrix.copy_into(path, tmp_path / "o.mp4")
    assert "Second video stream 0 (h264) cannot be kept in MP4 and is left out." in writer.notes
