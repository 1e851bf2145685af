"""Keys and values that others read."""
