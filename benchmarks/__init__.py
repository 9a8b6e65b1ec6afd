"""Slow checks with thresholds of their own, run by `make bench`."""
