"""File formats: one module each for reading it, and what they share."""
