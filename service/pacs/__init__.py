"""Communication with a PACS (picture archiving and communication system)."""
