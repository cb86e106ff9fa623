"""Install pip into this environment, which Python made without it: `.venv/bin/python scripts/fetch_pip.py`."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Final

WHEEL: Final = "pip-26.3-py3-none-any.whl"
SHA256: Final = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
INDEX: Final = "https://pypi.org/simple"


def main() -> int:
    """Fetch the wheel, check it and let it install itself; return the exit code."""
    index = os.environ.get("PIP_INDEX_URL", INDEX).rstrip("/")
    asked = urllib.request.Request(f"{index}/pip/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})  # noqa: S310 - the index of packages
    try:
        with urllib.request.urlopen(asked) as answer:  # noqa: S310 - as above
            (url,) = [file["url"] for file in json.load(answer)["files"] if file["filename"] == WHEEL]
        with urllib.request.urlopen(url) as answer:  # noqa: S310 - as above
            content = answer.read()
    except (OSError, ValueError) as error:
        print(f"{index} gave no {WHEEL} ({error}).", file=sys.stderr)
        return 1
    if hashlib.sha256(content).hexdigest() != SHA256:
        print(f"{url} is not the expected file: its SHA-256 is another.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / WHEEL
        wheel.write_bytes(content)
        return subprocess.call([sys.executable, f"{wheel}/pip", "install", "--quiet", "--no-index", str(wheel)])  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
