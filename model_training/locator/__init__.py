"""Training of a locator: synthetic scans drawn from label maps of heads, landmarks on a coarse grid."""
