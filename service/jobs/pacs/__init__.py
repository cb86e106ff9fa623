"""The durable job that pulls a series from a PACS, segments it and delivers the results."""
