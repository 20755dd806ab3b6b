"""Recorded routing: reading, windows, statistics."""
