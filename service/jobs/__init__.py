"""Durable jobs: DBOS owns queue, state and recovery."""
