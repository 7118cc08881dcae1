"""One finding a file. May import inputs, numbers and below, no other finding; their order is mil.diagnosis.catalogue."""
