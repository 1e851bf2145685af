"""Fairy (arXiv 2312.13834): every frame attends to itself and to a few anchors, which were edited together first.

The anchors read each other, so they are one batch; all other frames are independent of each other.
"""

from fairy.runtime.methods.method import Method


def anchors_of(frame: int, anchors: tuple[int, ...]) -> tuple[int, ...]:
    """S(i) = the anchors, for anchors too."""
    return anchors


FAIRY = Method("fairy", anchors_of, own=True, layers="all", anchors="chosen", orders=("parallel",))
