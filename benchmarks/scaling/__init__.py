"""How an edit scales over workers, simulated with the planner itself: `fairy bench scaling`."""
