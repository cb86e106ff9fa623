"""Many scans, one folder of results, through interruptions: `calibrant batch`."""
