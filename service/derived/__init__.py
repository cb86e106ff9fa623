"""Computations on the files of a finished job, run on demand in a child process."""
