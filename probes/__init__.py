"""Probes: one measurement of one encoder a file."""
