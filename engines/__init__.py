"""A graph becomes something fast that is safe to load: backends behind one protocol."""
