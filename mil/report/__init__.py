"""The page of a run: what it found and how far to trust it. May import evaluation and below."""
