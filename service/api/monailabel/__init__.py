"""`/monailabel/`: what the MONAI Label extension of 3D Slicer and the MONAI Label mode of OHIF ask of their server.

The contract is theirs (docs/viewers.md), and OpenAPI does not show it. Below it is the ordinary service: a session is a
stored scan, an inference a durable job, a token a key.
"""
