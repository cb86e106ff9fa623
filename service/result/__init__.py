"""The files of a result, and how each is written and read."""
