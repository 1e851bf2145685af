"""What is measured: quality and speed, always side by side in one run."""
