"""What an edit will do, decided before any of it is done."""
