"""Slide files: one protocol, a reader for each kind of file, and what tells one file from another. May import jobs."""
