"""Patches to cached embeddings of a frozen backbone. May import `tiling`, never `mil`."""
