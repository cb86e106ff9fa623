"""The command line: one module per command, all of them joined in `cli`."""
