"""Quality control: the facts of each slide, the rules that doubt it, its picture, the page.

May import store and below.
"""
