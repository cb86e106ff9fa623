"""Training of a locator: label maps of heads -> synthetic scans -> landmarks on a coarse grid."""
