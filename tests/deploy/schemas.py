"""Whether objects are what Kubernetes takes: its own kinds by its schemas, those of operators by the schemas here."""

import json
import pathlib

import jsonschema
import kubernetes_validate

# The oldest and the newest version that the manifests are meant for.
VERSIONS = ["1.29", kubernetes_validate.latest_version()]


def _custom():
    kinds = {}
    for path in pathlib.Path(__file__).parent.glob("schemas/*.json"):
        described = json.loads(path.read_text())
        validator = jsonschema.Draft202012Validator(described["schema"])
        kinds[described["apiVersion"], described["kind"]] = validator
    return kinds


CUSTOM = _custom()


def problems(thing):
    """What is wrong with an object, in words."""
    custom = CUSTOM.get((thing["apiVersion"], thing["kind"]))
    if custom:
        return [f"{error.json_path}: {error.message}" for error in custom.iter_errors(thing)]
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{version}: {'.'.join(map(str, error.path))}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            found.append(f"{version}: knows no {thing['apiVersion']} {thing['kind']}")
    return found
