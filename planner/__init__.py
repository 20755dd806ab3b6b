"""ep-plan: placement and capacity planning for Mixture-of-Experts models.

The rooms, lowest first (a room imports only rooms before it; `make check` enforces it):

    inputs < trace < plan < cost < baselines < check < solve < review < report < cli
"""

__version__ = "0.1.0"
