"""Multiple-instance learning on slide labels, and maps of where the model looked."""
