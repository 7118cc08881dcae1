"""One finding a file; their order stands in mil.diagnosis.catalogue."""
