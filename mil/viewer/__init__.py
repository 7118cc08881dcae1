"""view-slide: slides and maps in a browser, served on this machine alone. May import maps and below."""
