"""Logs and metrics for the operator of a running service; neither contains anything that a user sent."""
