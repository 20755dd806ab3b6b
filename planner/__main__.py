"""`python -m planner` is `ep-plan`."""

from planner.cli.main import run

if __name__ == "__main__":
    run()
