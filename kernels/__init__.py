"""Arithmetic on tensors: one op, one file, one test, one benchmark."""
