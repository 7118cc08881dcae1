"""What is counted on the way: colours of the tissue and what batch norms see, of a slide and of a cohort.

`adapted_norms` gives a network what its batch norms saw. May import encoders and feature_file.
"""
