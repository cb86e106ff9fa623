"""`/monailabel/`: the server side of MONAI Label, for the extension of 3D Slicer and the mode of OHIF.

The clients define the contract (docs/viewers.md); OpenAPI does not show it. It maps onto the ordinary service: a session
is a stored scan, an inference is a durable job, a token is a key.
"""
