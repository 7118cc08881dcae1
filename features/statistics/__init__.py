"""By-products of embedding: colours of the tissue, what batch norms see, slide by slide and over a cohort.

May import encoders and the modules that stand beside the rooms (feature_file, patch_source, device).
"""
