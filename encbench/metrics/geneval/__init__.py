"""GenEval (arXiv 2310.11513): prompts, images, detected objects, verdicts and scores."""
