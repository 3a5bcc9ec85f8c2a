"""The zoo: small encoders that differ only in their training objective.

One recipe a file; ``train`` is the loop that all share, ``text`` the captions and the tokenizer
that all share, ``catalog`` what there is, ``weights/`` what comes with encbench.
"""
