"""Turns what other tools print about a machine into a topology.yaml."""
