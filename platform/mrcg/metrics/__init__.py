"""Orders of hits, and metrics that need no model: ranking, known items, bootstrap intervals, calibration, reports."""
