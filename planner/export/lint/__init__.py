"""What an engine would do with a command line: refuse it, ignore parts of it, or make something else of it."""
