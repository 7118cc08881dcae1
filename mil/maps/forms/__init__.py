"""One form of a heatmap a file."""
