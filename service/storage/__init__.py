"""Files of the state directory: scans, attempts, results."""
