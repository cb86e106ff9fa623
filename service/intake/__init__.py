"""Intake of scans: untrusted bytes become a checked `Volume`."""
