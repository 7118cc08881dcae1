"""The forms of a heatmap, one a file; registry.py names them. May import maps and below."""
