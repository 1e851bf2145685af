"""Where built engines are kept, and by what key."""
