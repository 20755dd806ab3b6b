"""Tests, cheapest first: unit, oracle (against enumeration), golden, cli."""
