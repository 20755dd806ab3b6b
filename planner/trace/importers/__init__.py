"""Turns what engines record into the native trace; one format a file."""
