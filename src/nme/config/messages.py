"""One line for each mistake in a configuration: the file, the key, the value and the allowed values."""

from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ValidationError,
)

from nme.errors import NmeError, unknown
from nme.models import MODELS

Section = TypeVar("Section", bound=BaseModel)


def check(model: type[Section], values: Any, where: str) -> Section:
    """Validate a section.

    Raises:
        NmeError: one line per mistake: the file, the key, the value and the allowed values.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{where}: {_explain(model, e)}" for e in error.errors()]
        raise NmeError("\n".join(dict.fromkeys(lines))) from None


def _explain(model: type[BaseModel], error: Any) -> str:
    # Pydantic inserts the name of a discriminated model into the location; the file has no such level.
    path = [p for i, p in enumerate(error["loc"]) if not (i and error["loc"][i - 1] == "model" and p in MODELS)]
    key = ".".join(str(p) for p in path if p != "[key]")
    if error["type"] == "extra_forbidden":
        parent, last = path[:-1], path[-1]
        return (f"{'.'.join(map(str, parent))}: " if parent else "") + unknown(
            "key", last, _keys(model, error["loc"][:-1])
        )
    if error["type"] == "union_tag_not_found":
        return f"{key}.name: this key is missing (allowed: {', '.join(MODELS)})"
    if error["type"] == "union_tag_invalid":
        return f"{key}.name: {unknown('model', error['ctx']['tag'], MODELS)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}{' ' if message.startswith('is ') else ': '}{message}" if key else message
    if not key:
        return f"must be keys with values, not {error['input']!r}"
    if error["type"] == "missing":
        return f"{key}: this key is missing"
    if error["type"] == "literal_error":
        return f"{key} is {error['input']!r} (allowed: {error['ctx']['expected']})"
    return f"{key} is {error['input']!r} ({message[0].lower()}{message[1:]})"


def _keys(model: Any, path: tuple[int | str, ...]) -> list[str]:
    """Keys allowed at ``path`` below ``model``, from pydantic's own schema."""
    schema = model.model_json_schema()
    node = schema
    for part in path:
        node = _resolve(schema, node)
        if isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        elif "mapping" in node.get("discriminator", {}) and part in node["discriminator"]["mapping"]:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), {})
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: Any) -> dict[str, Any]:
    """Follow references; for an optional section, take the section."""
    while isinstance(node, dict):
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            node = node["anyOf"][0]
        else:
            return node
    return {}
