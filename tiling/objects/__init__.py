"""Output folders in object stores: objects put whole on a condition, and locks that need no rename. By obstore, whose
one interface has conditional puts for S3, Google Cloud Storage and Azure.
"""
