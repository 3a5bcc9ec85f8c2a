"""Blind pairwise user studies: one static page, and a reader of the answers."""
