"""Data sets, metrics and collation for the tasks a model is tuned on."""
