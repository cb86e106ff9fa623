"""`calibrant batch`: segments many scans into one folder of results, and goes on after interruptions."""
