"""Figures and tables of what the other packages found."""
