"""The mL1-ACE losses."""
