"""Slides with features and labels: loaded, checked, held in memory, audited for leaks, split.

May import tasks, features and tiling.
"""
