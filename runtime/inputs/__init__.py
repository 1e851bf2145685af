"""What frames are, and what they begin with."""
