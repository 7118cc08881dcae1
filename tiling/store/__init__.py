"""The patch store on disk, its shards and its codec, and stores that hold coordinates alone.

May import grid, tissue, slides and jobs.
"""
