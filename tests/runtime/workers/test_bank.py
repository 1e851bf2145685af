"""The bank's way from worker to worker: a step counts as arrived when its values are there, and not before."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fairy.runtime.anchors import AnchorBank
from fairy.runtime.workers.bank import ArrivingBank, BankGroup, BankLost

CPU = torch.device("cpu")
STEPS = 3


def bank(fill: float) -> AnchorBank:
    steps = tuple({"layer": torch.full((1, 4, 2), fill + step)} for step in range(STEPS))
    return AnchorBank((), steps, tuple({"layer": t["layer"] + 0.5} for t in steps), 1)


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
    for there, here in zip((*sent.keys, *sent.values), (*received.keys, *received.values), strict=True):
        assert torch.equal(there["layer"], here["layer"])


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
    assert torch.equal(arriving._bank.keys[0]["layer"], sent.keys[0]["layer"])
