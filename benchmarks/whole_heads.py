"""Runs `heads.py`: `python benchmarks/whole_heads.py`.

A script of its own, because every decoding process runs the top of the script again: with the libraries of heads.py there,
each would load them beside what is being timed.
"""

import sys

if __name__ == "__main__":
    from heads import main

    sys.exit(main())
