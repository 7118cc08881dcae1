"""The pipe from patches to embeddings: decoding, lanes of devices, engines.

May import statistics, encoders and below.
"""
