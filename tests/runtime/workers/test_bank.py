"""The bank's way from worker to worker: a step counts as arrived when its values are there, and not before."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fairy.export.graphs import GraphSpec, SelfAttention
from fairy.runtime.bank.anchor_bank import AnchorBank
from fairy.runtime.workers.broadcast import ArrivingBank, BankGroup, BankLost
from tests.runtime.workers.nccl import Fabric, SimulatedLane

CPU = torch.device("cpu")
STEPS = 3


def bank(fill: float) -> AnchorBank:
    layers = tuple(SelfAttention(name, 0, 2, 4, own="batch", emits=True) for name in ("first", "second"))
    made = AnchorBank.allocate(
        GraphSpec("unet_anchor", (), (), layers),
        num_inference_steps=STEPS,
        branches=1,
        num_anchors=2,
        latent_size=(2, 3),
        dtype=torch.float32,
        device=CPU,
    )
    for step in range(STEPS):
        for i, t in enumerate((*made.keys[step].values(), *made.values[step].values())):
            t.fill_(fill and fill + 10 * step + i)
    return made


def same(one: AnchorBank, other: AnchorBank) -> bool:
    return all(
        torch.equal(there[name], here[name])
        for there, here in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
        for name in there
    )


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[BankGroup, BankGroup]]:
    """Leader and receiver."""
    leader, receiver = (BankGroup(str(tmp_path / "meeting"), rank, 2, STEPS, CPU, 30.0) for rank in (0, 1))
    yield leader, receiver
    leader.close("the test is over")
    receiver.close("the test is over")


class Slow:
    """A CUDA event as far as the group asks it: done when told."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


def test_all_steps_arrive(pair: tuple[BankGroup, BankGroup]) -> None:
    leader, receiver = pair
    sent, received = bank(7.0), bank(0.0)
    ArrivingBank(received, receiver, lambda step: None)
    for step in range(STEPS):
        leader.post(sent, step)
    receiver.arrived(STEPS - 1)
    assert same(sent, received)


def test_a_transfer_under_way_has_not_arrived(pair: tuple[BankGroup, BankGroup]) -> None:
    _, receiver = pair
    events = [Slow() for _ in range(STEPS)]
    receiver._passed.extend(cast(Any, events))
    returned = threading.Event()
    threading.Thread(target=lambda: (receiver.arrived(STEPS - 1), returned.set()), daemon=True).start()
    assert not returned.wait(0.3)
    events[-1].done = True
    assert returned.wait(5)


def test_giving_up_a_transfer_under_way_loses_the_bank(pair: tuple[BankGroup, BankGroup]) -> None:
    _, receiver = pair
    receiver._passed.extend(cast(Any, [Slow() for _ in range(STEPS)]))
    told: list[BankLost] = []

    def wait() -> None:
        try:
            receiver.arrived(STEPS - 1)
        except BankLost as error:
            told.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.1)
    receiver.close("a worker died")
    waiting.join(5)
    assert [str(error) for error in told] == ["The anchors' bank was lost: a worker died."]


def test_a_bank_that_has_arrived_outlives_its_group(pair: tuple[BankGroup, BankGroup]) -> None:
    leader, receiver = pair
    sent = bank(1.0)
    arriving = ArrivingBank(bank(0.0), receiver, lambda step: None)
    for step in range(STEPS):
        leader.post(sent, step)
    receiver.arrived(STEPS - 1)
    receiver.close("it was given up")
    receiver.arrived(STEPS - 1)
    assert same(arriving._bank, sent)


class Simulated:
    """A leader and two receivers that meet by a simulated NCCL; what the tests ask of them, within five seconds."""

    def __init__(self, folder: Path, timeout_s: float = 60.0) -> None:
        self.fabric = Fabric(3)
        self.lanes = [SimulatedLane(self.fabric, rank, at_once=rank > 0) for rank in range(3)]
        meeting = str(folder / "meeting")
        self.groups = [BankGroup(meeting, r, 3, STEPS, CPU, timeout_s, lane) for r, lane in enumerate(self.lanes)]
        self.sent, self.received = bank(7.0), [bank(0.0), bank(0.0)]

    def receive(self) -> None:
        for group, empty in zip(self.groups[1:], self.received, strict=True):
            ArrivingBank(empty, group, lambda step: None)

    def compute(self, step: int) -> None:
        """The leader's GPU has come to the end of a step; its host was there long before."""
        self.lanes[0].marks[step].set()

    def post_all(self) -> None:
        for step in range(STEPS):
            self.groups[0].post(self.sent, step)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end, "it does not come to pass"
            time.sleep(0.005)

    def enqueued(self, rank: int) -> int:
        return len(self.fabric.enqueued[rank])


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[Callable[..., Simulated]]:
    made: list[Simulated] = []

    def make(**changes: float) -> Simulated:
        made.append(Simulated(tmp_path, **changes))
        return made[-1]

    yield make
    for one in made:
        for lane in one.lanes:
            for mark in lane.marks:
                mark.set()
        for group in one.groups:
            group.close("the test is over")


def test_a_receivers_device_is_free_until_a_step_is_there(simulated: Callable[..., Simulated]) -> None:
    it = simulated(timeout_s=0.4)
    it.receive()
    it.post_all()
    for step in range(STEPS):
        time.sleep(0.3)  # all of phase A takes longer than one transfer may
        for rank in range(3):
            assert it.enqueued(rank) == step
            assert it.fabric.synchronise(rank, 0.1), "recording a graph would wait for the rest of phase A"
        it.compute(step)
        it.until(lambda step=step: all(it.enqueued(rank) == step + 1 for rank in range(3)))
    for group in it.groups[1:]:
        group.arrived(STEPS - 1)
    it.fabric.watch()
    assert max(it.fabric.most_pending) == 1
    assert not it.fabric.late
    assert all(same(it.sent, received) for received in it.received)


def test_receivers_that_enqueue_everything_at_once_show_the_faults(tmp_path: Path) -> None:
    """What the simulation is for: the way not taken occupies the device and runs out of time."""
    fabric = Fabric(2)
    fabric.timeout_s = 0.1
    received, sent = bank(0.0), bank(7.0)
    for buffer in received.flat:
        fabric.enqueue(1, buffer)
    assert not fabric.synchronise(1, 0.3)
    assert fabric.late == {1}
    for buffer in sent.flat:
        fabric.enqueue(0, buffer)
    assert fabric.synchronise(1, 0.1)
    assert same(sent, received)


def test_a_receiver_that_is_gone_holds_the_leader_up_until_it_is_told(simulated: Callable[..., Simulated]) -> None:
    it = simulated()
    ArrivingBank(it.received[0], it.groups[1], lambda step: None)  # rank 2 never takes part
    it.post_all()
    it.compute(0)
    it.until(lambda: it.enqueued(0) == it.enqueued(1) == 1)
    assert not it.fabric.synchronise(0, 0.2)
    it.groups[0].close("a worker died")  # what "bank_off" does
    assert it.fabric.synchronise(0, 1.0)
    it.groups[1].close("a worker died")
    with pytest.raises(BankLost, match="a worker died"):  # its events have passed, and are not taken for an arrival
        it.groups[1].arrived(0)
    it.compute(1)
    it.groups[0].post(it.sent, 2)  # phase A goes on
    time.sleep(0.05)
    assert it.enqueued(0) == 1


def test_reading_a_step_lets_the_stream_wait_for_it(simulated: Callable[..., Simulated]) -> None:
    it = simulated()
    it.receive()
    it.post_all()
    it.compute(0)
    it.groups[1].wait(0, lambda: None)
    assert it.lanes[1].followed == it.fabric.enqueued[1]
