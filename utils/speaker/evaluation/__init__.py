"""Trials, test conditions, metrics, reports and comparisons."""
