"""The training loop with its checkpoints, processes, precision and progress."""
