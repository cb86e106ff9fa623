"""Write docs/openapi.json, the description of the REST interface that a test holds equal to the application's own."""

import json
import tempfile
from pathlib import Path

from service.app import create_app
from service.settings import Settings

TARGET = Path(__file__).parents[1] / "docs" / "openapi.json"


def document() -> str:
    """Return the OpenAPI document of the application as text."""
    with tempfile.TemporaryDirectory() as folder:
        return json.dumps(create_app(Settings(state_dir=Path(folder))).openapi(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document())
