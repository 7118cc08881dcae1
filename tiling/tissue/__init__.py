"""What a slide shows, on its thumbnail: tissue, glass, pen, the user's own masks and polygons.

May import slides and jobs.
"""
