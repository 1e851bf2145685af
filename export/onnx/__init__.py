"""Graphs as ONNX files."""
