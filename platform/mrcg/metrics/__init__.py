"""Metrics that need no model: ranking, bootstrap intervals, calibration, drift, and the schema of a report."""
