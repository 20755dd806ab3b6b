"""Choosing split and placement, with a proven bound."""
