"""The client library: httpx only, neither torch nor monai."""
