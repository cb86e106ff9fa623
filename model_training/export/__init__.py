"""Export of a training run as a bundle with its calibration card."""
