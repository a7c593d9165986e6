"""Reconstruction: phi(W) = f(W) rescales or rotates the subspaces of W."""
