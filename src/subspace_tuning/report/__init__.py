"""Figures and tables of the results of other rings."""
