"""A checkpoint becomes graphs: modules whose anchor keys and values are explicit inputs and outputs."""
