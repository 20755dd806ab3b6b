"""The micro-run: a plan's ranks started for real, its routing replayed, what they do counted and timed.

`worker.py` is what every rank runs, whoever started it; `coordinate.py` collects what the ranks found;
`verdict.py` judges it. The numbers that a rank needs are made in `replay.py` and `seats.py` without torch.
"""
