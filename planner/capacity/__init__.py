"""Capacity: is balancing worth it, what if, when to move experts, how many GPUs."""
