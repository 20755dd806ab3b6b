"""The truth: memory and time of a plan, in numpy, each term with its source."""
