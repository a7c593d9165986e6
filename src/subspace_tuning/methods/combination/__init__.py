"""Combination: phi(W) = g(f(W)) rescales W and adds to it."""
