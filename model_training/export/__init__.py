"""A training run becomes a bundle with its calibration card."""
