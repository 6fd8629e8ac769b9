"""Metrics, reports and pictures (DESIGN §3)."""
