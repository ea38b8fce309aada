"""The report of a run: tables, plots, verdict, what to ship, and the page."""
