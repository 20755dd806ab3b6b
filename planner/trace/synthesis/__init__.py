"""Synthetic traces: from stated figures, or fitted to a recorded trace so that a bug can be shared without data."""
