"""Why is validation accuracy stuck? One finding a file, each a number, a picture, a verdict and a remedy."""
