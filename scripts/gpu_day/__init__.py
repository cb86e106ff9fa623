"""Exercises the project on a GPU: `scripts/gpu-day`; docs/gpu.md says what its modes print."""
