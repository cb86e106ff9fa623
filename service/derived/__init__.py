"""What is computed from a finished job's files on demand, in a child process."""
