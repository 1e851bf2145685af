"""What the kernels can be handed at most; read where nothing else of them is loaded."""

MAX_SEGMENTS = 4
"""Context segments of one call of `anchor_attention`, beside the frame's own tokens."""
