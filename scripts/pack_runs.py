"""Pack the runs that `calibrant compare` wrote, so that they can be committed: `python scripts/pack_runs.py FOLDER ...`."""

import sys
from pathlib import Path

from model_training.comparison.files import PLAIN, pack

if __name__ == "__main__":
    for folder in sys.argv[1:]:
        for file in sorted(Path(folder).glob(f"*{PLAIN}")):
            sys.stdout.write(f"{pack(file)}\n")
