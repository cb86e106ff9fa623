"""Readers of file formats, one module each, and their shared parts."""
