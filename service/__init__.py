"""Calibrant's service: 3-D medical image segmentation that says how far it can be trusted."""

__version__ = "0.1.0"
