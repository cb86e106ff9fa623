"""The contract on disk: what a bundle holds, how it is verified and how it is loaded."""
