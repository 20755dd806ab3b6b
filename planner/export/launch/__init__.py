"""Commands and host files that start the ranks of a plan where the plan wants them."""
