"""JSON schemas of the configuration files, for editors: ``python -m nme.config.schemas workflow/schemas``."""

import json
import sys
from pathlib import Path

from nme.config.figure import Figure
from nme.config.project import Config, Style
from nme.config.scale import Scale
from nme.outputs.files import atomic


def write_schemas(folder: Path) -> None:
    """Write the JSON schema of each kind of configuration file, for editors and for the workflow catalog."""
    for model in (Config, Scale, Figure, Style):
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
        with atomic(folder / f"{model.__name__.lower()}.schema.json") as path:
            path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
