"""Datasets, each read by its own file; ``hub`` is the only part that downloads."""
