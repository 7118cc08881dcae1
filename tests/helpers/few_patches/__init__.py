"""Bags of which half have a few patches that the others lack, and what of: tissue, cancer, drawings, numbers."""
