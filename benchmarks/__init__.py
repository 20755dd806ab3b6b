"""Measurements of the planner; every figure is printed with its conditions."""
