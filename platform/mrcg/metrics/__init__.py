"""Measures without models: ranking, bootstrap, calibration, drift, and the schema of a report."""
