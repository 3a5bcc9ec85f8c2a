"""A family of small encoders: same text, size and tokenizer; only the objective differs."""
