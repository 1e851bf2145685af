"""The small pieces by themselves: clocks, rates, the wire, the structure of files."""

import os
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from fairy.kernels.errors import InputError
from fairy.runtime.video import Clock, VideoWriter, probe, timing, wire
from fairy.runtime.video.boxes import is_cut_off
from fairy.runtime.video.info import exact_rate

MS = Fraction(1, 1000)
RATES = st.sampled_from(
    [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(24000, 1001), Fraction(15)]
)


@given(
    RATES, st.integers(2, 300), st.integers(-1000, 10**6), st.sampled_from([MS, Fraction(1, 90000), Fraction(1, 15360)])
)
@settings(deadline=None)
def test_a_constant_rate_is_recognised_through_rounding(rate, count, start, time_base):
    pts = np.array([start + round(i / (rate * time_base)) for i in range(count)])
    found = timing.constant_rate(pts, time_base, (rate,))
    assert found == rate
    free = timing.constant_rate(pts, time_base)
    assert free is not None
    assert abs(free - rate) * Fraction(count, 2) <= rate or count < 10


@given(st.lists(st.integers(1, 50), min_size=4, max_size=60).filter(lambda steps: max(steps) > 2 * min(steps) + 4))
@settings(deadline=None)
def test_an_uneven_clock_has_no_constant_rate(steps):
    pts = np.cumsum([0, *steps])
    rate = timing.constant_rate(pts, MS)
    if rate is not None:  # then every frame is where that rate says, within a tick
        due = np.arange(len(pts)) / float(rate * MS)
        assert np.abs(pts - due).max() <= 1.001


def test_a_missing_slot_in_avi_is_not_a_constant_rate():
    """One tick is a whole frame there: 0, 2, 3, 4 skips one."""
    assert timing.constant_rate(np.array([0, 2, 3, 4, 5]), Fraction(1, 30), (Fraction(30),)) is None


@given(st.integers(-(10**12), 10**12), st.sampled_from([MS, Fraction(1, 90000), Fraction(1001, 30000)]))
@settings(deadline=None)
def test_times_are_rounded_to_the_nearest(pts, target):
    rounded, exact = timing.rescale(np.array([pts]), Fraction(1, 15360), target)
    error = abs(int(rounded[0]) * target - Fraction(pts, 15360))
    assert error <= target / 2
    assert exact == (error == 0)


def test_clocks():
    clock = Clock((0, 10, 30), MS)
    assert clock.last_duration == 20
    assert clock.end == 50
    part = Clock([5, 10, 30, 35], MS, 7).cut(1, 3)
    assert (part.pts.tolist(), part.last_duration, part.shifted().pts.tolist()) == ([10, 30], 5, [0, 20])
    assert Clock([5, 10], MS, 7).cut(1, 2).last_duration == 7
    assert Clock.constant(3, 25).pts.tolist() == [0, 1, 2]
    assert not clock.pts.flags.writeable
    for wrong in ((), (0, 0), (1, 0)):
        with pytest.raises(InputError):
            Clock(wrong, MS)


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (25.0, 25),
        (12.5, Fraction(25, 2)),
        (24, 24),
        (Fraction(7, 3), Fraction(7, 3)),
    ],
)
def test_rates_by_their_usual_names(fps, exact):
    assert exact_rate(fps) == exact


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.none(), max_size=4),
    st.binary(max_size=300_000),
)
@settings(max_examples=30, deadline=None)
def test_messages_arrive_as_they_were_sent(message, payload):
    message.pop("bytes", None)
    read, write = os.pipe()
    sender = threading.Thread(target=lambda: [wire.send(write, message, payload) for _ in range(2)])
    sender.start()
    try:
        inbox = wire.Inbox(read)
        for _ in range(2):
            assert inbox.receive(300_000) == (message, payload)
    finally:
        sender.join()
        os.close(read)
        os.close(write)


def test_a_helper_cannot_announce_more_than_was_asked_for():
    read, write = os.pipe()
    os.write(write, b'{"bytes": 1000000000000}\n')
    with pytest.raises(ValueError, match="1000000000000"):
        wire.Inbox(read).receive(100)
    os.close(write)
    with pytest.raises(wire.Closed):
        wire.Inbox(read).receive(100)
    os.close(read)


@pytest.mark.parametrize(
    ("data", "cut"),
    [
        (struct.pack(">I4s", 16, b"ftyp") + bytes(8), False),
        (struct.pack(">I4s", 16, b"ftyp") + bytes(7), True),
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4sQ", 1, b"mdat", 1 << 40), True),
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4s", 0, b"mdat") + b"rest", False),
        (struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4s", 99, b"free"), False),
        (b"RIFF" + struct.pack("<I", 100) + b"AVI " + bytes(50), True),
        (b"RIFF" + struct.pack("<I", 54) + b"AVI " + bytes(50), False),
        (bytes.fromhex("1a45dfa3 80 18538067 85") + bytes(5), False),
        (bytes.fromhex("1a45dfa3 80 18538067 85") + bytes(4), True),
        (bytes.fromhex("1a45dfa3 80 18538067 01ffffffffffffff") + bytes(4), False),
        (b"", False),
        (b"hello", False),
    ],
)
def test_the_structure_tells_where_a_file_ends(tmp_path, data, cut):
    (tmp_path / "x").write_bytes(data)
    assert is_cut_off(tmp_path / "x") is cut


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_bytes_confuse_the_look_at_the_structure(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("b") / "x"
    for head in (b"", bytes.fromhex("1a45dfa3"), b"RIFF0000AVI ", b"\0\0\0\x10ftyp"):
        path.write_bytes(head + data)
        assert is_cut_off(path) in (True, False)


@pytest.mark.slow
@given(
    steps=st.lists(st.integers(1, 4000), min_size=0, max_size=25),
    start=st.integers(0, 50_000),
    last=st.integers(1, 4000),
    time_base=st.sampled_from([MS, Fraction(1, 90000), Fraction(1001, 30000), Fraction(1, 48000)]),
)
@example(steps=[2, 7, 1], start=0, last=1, time_base=MS)
@settings(max_examples=9, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_any_clock_survives_mp4_and_milliseconds_survive_matroska(tmp_path_factory, steps, start, last, time_base):
    clock = Clock(start + np.cumsum([0, *steps]), time_base, last)
    folder = tmp_path_factory.mktemp("clock")
    for name in ("o.mp4", "o.mkv") if time_base == MS else ("o.mp4",):
        with VideoWriter(folder / name, width=16, height=16, clock=clock) as writer:
            writer.write(np.zeros((len(clock.pts), 16, 16, 3), np.uint8))
        info = probe(folder / name)
        assert [int(p) * info.time_base for p in info.pts] == [int(p) * time_base for p in clock.pts]
        assert info.duration_s == pytest.approx(float((clock.end - clock.pts[0]) * time_base), abs=0.0011)
