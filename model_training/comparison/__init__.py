"""Configurations compared over folds and seeds: the runs, their tables and their picture."""
