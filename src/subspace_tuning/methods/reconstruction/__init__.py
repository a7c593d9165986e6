"""Reconstruction: phi(W) = f(W) rescales or turns the subspaces of W."""
