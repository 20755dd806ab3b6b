"""Judging plans: comparison on other traces."""
