"""Training objectives, a class each; see :mod:`.base`."""
