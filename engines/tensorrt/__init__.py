"""Engines by TensorRT."""
