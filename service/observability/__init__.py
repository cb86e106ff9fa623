"""What an operator sees of a running service: logs and metrics, never anything that a user sent."""
