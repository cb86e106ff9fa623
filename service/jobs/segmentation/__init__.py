"""The durable job that segments one scan."""
