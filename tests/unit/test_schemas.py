"""The JSON schemas that editors use: generated, in sync, and agreeing with what the program accepts."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from nme.config.schemas import write_schemas

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "workflow/schemas"

FILES = [
    ("config", ROOT / "config/config.yaml"),
    ("style", ROOT / "config/style.yaml"),
    *(("scale", path) for path in sorted((ROOT / "config/scales").glob("*.yaml"))),
    *(("figure", path) for path in sorted((ROOT / "config/figures").glob("*.yaml"))),
]

each_file = pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda v: v if isinstance(v, str) else v.name)


def mistakes(kind: str, values: object) -> list[str]:
    schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{e.json_path}: {e.message}" for e in validator.iter_errors(values)]


def tiny() -> dict:
    return yaml.safe_load((ROOT / "config/scales/tiny.yaml").read_text())


def test_schemas_are_those_of_the_program(tmp_path):
    """If this fails: make schemas."""
    write_schemas(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in SCHEMAS.iterdir()}


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda p: p.name)
def test_schemas_are_schemas(path):
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


@each_file
def test_shipped_files_are_valid(kind, path):
    assert mistakes(kind, yaml.safe_load(path.read_text())) == []


@each_file
def test_shipped_files_name_their_schema(kind, path):
    """So that an editor finds it."""
    first = path.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first).group(1)
    assert (path.parent / named).resolve() == (SCHEMAS / f"{kind}.schema.json").resolve()


@pytest.mark.parametrize("value", [0, 0.1, "1e-3"])
def test_an_axis_takes_numbers_as_yaml_reads_them(value):
    """1e-3 is text to YAML 1.1, and a number to a user."""
    assert mistakes("scale", {**tiny(), "axes": {"rho": [value]}}) == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("config", {"scale": "tiny", "devcie": "cpu"}),
        ("config", {"scale": "tiny", "device": "gpu"}),
        ("config", {}),
        ("scale", {**tiny(), "seeds": 0}),
        ("scale", {**tiny(), "axes": {"rho": []}}),
        ("scale", {**tiny(), "sedes": 1}),
        ("scale", {**tiny(), "recipes": {"r": {"dataset": "digits"}}}),
        ("figure", {"kind": "papper", "title": "", "caption": ""}),
        ("style", {"activation": {"relu": "blue"}, "method": {}}),
    ],
    ids=str,
)
def test_schemas_find_mistakes(kind, values):
    assert mistakes(kind, values)


def test_every_key_is_described():
    """The parameter guide in the editor: no setting without a word about it."""
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text())
        for section in [schema, *schema.get("$defs", {}).values()]:
            undescribed = [k for k, v in section.get("properties", {}).items() if not {"description", "$ref"} & set(v)]
            assert [k for k in undescribed if k not in ("activation", "method")] == [], section["title"]
