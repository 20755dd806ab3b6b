"""The report of a plan as one self-contained HTML file: no script, no request, light and dark."""
