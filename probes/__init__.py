"""Probes: one file each, one measurement of one encoder."""
