"""Comparison of configurations over folds and seeds: the runs, their tables and their picture."""
