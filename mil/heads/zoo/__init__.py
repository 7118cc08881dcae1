"""One head a file, each with `build(shape)`; their names stand in mil.heads.registry."""
