"""KubeRay's resource definitions as one small, strict JSON schema.

    python -m tests.worlds.kuberay_schemas VERSION RAYCLUSTERS.yaml RAYJOBS.yaml > kuberay.json

The definitions are those of `ray-operator/config/crd/bases` of KubeRay (Apache-2.0). Descriptions
are left out, a part that stands there several times is written once, and what a server would drop
in silence (a field that is not known) is an error.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KEPT = ("type", "enum", "required", "minimum", "maximum", "pattern", "minLength", "maxLength",
        "minItems", "maxItems")  # fmt: skip
SHARED_CHARACTERS = 120

Schema = dict[str, Any]


def strict(schema: Schema) -> Schema:
    """Return a schema of Kubernetes' dialect as plain JSON schema that allows known fields only.

    >>> strict({"type": "object", "description": "d", "properties": {"a": {"type": "string"}}})
    {'type': 'object', 'properties': {'a': {'type': 'string'}}, 'additionalProperties': False}
    >>> strict({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}]})
    {'type': ['integer', 'string']}
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    plain = {name: schema[name] for name in KEPT if name in schema}
    if "properties" in schema:
        plain["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        plain["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(schema.get("additionalProperties"), dict):
        plain["additionalProperties"] = strict(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        plain["items"] = strict(schema["items"])
    return plain


def with_shared_parts(schemas: dict[str, Schema]) -> Schema:
    """Return one schema with parts that occur several times under `$defs`, by number."""
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    parts: dict[str, Any] = {}

    def count(node: object) -> None:
        if isinstance(node, dict):
            text = json.dumps(node, sort_keys=True)
            counts[text] += 1
            if counts[text] > 1:
                return
        for child in node.values() if isinstance(node, dict) else ():
            count(child)

    def written(node: object) -> object:
        if not isinstance(node, dict):
            return node
        text = json.dumps(node, sort_keys=True)
        if "type" in node and counts[text] > 1 and len(text) > SHARED_CHARACTERS:
            if text not in names:
                names[text] = f"p{len(names)}"
                parts[names[text]] = {key: written(child) for key, child in node.items()}
            return {"$ref": f"#/$defs/{names[text]}"}
        return {key: written(child) for key, child in node.items()}

    for schema in schemas.values():
        count(schema)
    kinds = {kind: written(schema) for kind, schema in schemas.items()}
    return {"$defs": {**kinds, **parts}}


def main(version: str, paths: list[str]) -> None:
    """Print the schema of the definitions in some files."""
    schemas = {}
    for path in paths:
        definition = yaml.load(Path(path).read_text(), Loader=yaml.CSafeLoader)
        (one,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
        schemas[definition["spec"]["names"]["kind"]] = strict(one["schema"]["openAPIV3Schema"])
    comment = (
        f"KubeRay {version}, Apache-2.0 (see LICENSE), changed by tests/worlds/kuberay_schemas.py: "
        "without descriptions, unknown fields refused."
    )
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": comment}
    print(json.dumps({**schema, **with_shared_parts(schemas)}, separators=(",", ":")))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
