"""One command per file; no logic; one error boundary."""
