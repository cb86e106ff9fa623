"""`python -m calibrant` is `calibrant`, also beside a folder called `service`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    command = Path(sys.executable).with_name("calibrant")
    if not command.is_file():
        sys.exit("Install Calibrant with pip, then run its command: calibrant --help")
    os.execv(command, [str(command), *sys.argv[1:]])  # noqa: S606 - a new process: this one's path begins with the user's folder
