"""Exact search and retrieval metrics, as pure functions."""
