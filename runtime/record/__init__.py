"""What happened: progress, journal, report."""
