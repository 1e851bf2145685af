"""Every frame on its own: what the other methods are compared with."""

from fairy.runtime.methods.method import Method


def nobody(frame: int, anchors: tuple[int, ...]) -> tuple[int, ...]:
    """S(i) = ∅."""
    return ()


PER_FRAME = Method("per_frame", nobody, own=True, layers="all", anchors="none", orders=("parallel",))
