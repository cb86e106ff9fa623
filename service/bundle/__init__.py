"""Bundles: their format on disk, how they are verified and how they are loaded."""
