"""GenEval (arXiv 2310.11513): images of prompts, what is detected in them, verdict and scores."""
