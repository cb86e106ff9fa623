"""What takes a scan in: bytes that a stranger sent become a checked `Volume`."""
