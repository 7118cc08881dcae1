"""mil-demo: a phantom cohort through the whole line. May import maps and below, and tiling.phantom."""
