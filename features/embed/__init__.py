"""From patches to embeddings: where patches come from and are decoded, devices, engines, and the pipe through them.

`pipe` is what the others are for; `adaptation` goes through a sample of the patches before it. May import statistics,
encoders and below.
"""
