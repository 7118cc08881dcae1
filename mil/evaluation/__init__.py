"""How good a run is: out-of-fold predictions, figures, the plain baseline, other runs. May import run and below."""
