"""Runs `heads.py`: `python benchmarks/whole_heads.py`.

This is a separate script because every decoding process imports the main script again: with heads.py as the main script, each
would load its libraries during the timing.
"""

import sys

if __name__ == "__main__":
    from heads import main

    sys.exit(main())
