"""One finding a file. May import inputs, numbers and below, no other finding."""
