"""Small programs that show fairy at work."""
