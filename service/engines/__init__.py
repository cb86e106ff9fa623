"""Engines run a network: torch or OpenVINO, in float32 or bfloat16."""
