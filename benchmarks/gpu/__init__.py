"""All that wants a GPU: one prepared run in two calls, its rehearsal on a CPU, and what its results decide."""
