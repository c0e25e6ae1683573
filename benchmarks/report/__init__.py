"""From JSON results to tables, plots and verdicts."""
