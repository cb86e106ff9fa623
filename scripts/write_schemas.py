"""Write the JSON schemas of the bundle's files from their pydantic models: `python scripts/write_schemas.py`.

A version is frozen: a difference that `git diff` shows here is a new version of the format, not a correction. What an
earlier version's file says, e.g. of the card 1.0, stays as it is; no model writes it any more.
"""

import json
from pathlib import Path

from pydantic import BaseModel

from service.bundle.card import CalibrationCard
from service.bundle.schema import ServiceConfig

SCHEMAS: dict[str, type[BaseModel]] = {"calibration-card-1.1.json": CalibrationCard, "service-1.1.json": ServiceConfig}
FOLDER = Path(__file__).parents[1] / "service" / "bundle" / "schemas"


def schema_of(name: str) -> str:
    """Return the text of one schema file."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(head | SCHEMAS[name].model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    for file in SCHEMAS:
        (FOLDER / file).write_text(schema_of(file))
