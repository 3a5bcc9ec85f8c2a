"""One file for each command; no logic of their own."""
