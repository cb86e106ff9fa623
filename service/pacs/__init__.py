"""Everything that talks to a PACS (picture archiving and communication system)."""
