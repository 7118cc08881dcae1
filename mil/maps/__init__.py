"""Heatmaps: scores of patches, the forms they are written in, and how true they are. May import training and below."""
