"""Counting trainable parameters and operations of a method in a model, without weights."""
