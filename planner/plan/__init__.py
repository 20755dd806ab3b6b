"""Split, placement and plan: data and invariants only."""
