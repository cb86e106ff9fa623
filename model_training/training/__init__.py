"""The training loop and what it needs: checkpoints, several processes, precision, progress."""
