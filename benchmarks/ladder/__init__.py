"""The ladder: what every step of the compiled path is worth, beside what others would run."""
