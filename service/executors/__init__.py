"""Computes cases: in a resident child process, and in throw-away ones for what is derived later."""
