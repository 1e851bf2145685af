"""Which frames are anchors."""

from fairy.kernels.errors import InputError

DEFAULT_ANCHORS = 3


def choose_anchors(anchors: int | tuple[int, ...] | list[int] | None, num_frames: int) -> tuple[int, ...]:
    """Frame numbers of the anchors, in order.

    A number K gives the middles of K equal parts of the video: frame ((2k+1)·N) // (2K) for k = 0 … K−1.

    Raises:
        InputError: more anchors than frames, or a frame that the video does not have.
    """
    if anchors is None:
        anchors = min(DEFAULT_ANCHORS, num_frames)
    if isinstance(anchors, int):
        if anchors > num_frames:
            raise InputError(
                f"{anchors} anchors are more than the video's {num_frames} frames; choose at most {num_frames}."
            )
        return tuple((2 * k + 1) * num_frames // (2 * anchors) for k in range(anchors))
    chosen = tuple(sorted(anchors))
    outside = [a for a in chosen if not 0 <= a < num_frames]
    if outside:
        raise InputError(f"Anchor {outside[0]} is not a frame of the video; its frames are 0 to {num_frames - 1}.")
    if len(set(chosen)) != len(chosen):
        raise InputError("names a frame twice", name="anchors", value=list(chosen), remedy="name every anchor once")
    return chosen
