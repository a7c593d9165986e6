"""Extension: phi(W) = W + s * Delta adds a matrix of low rank or low cost."""
