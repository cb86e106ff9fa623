"""Evaluation of trained networks on labelled cases, and the files that show the results."""
