"""What `kubectl` would apply: overlays, rendered, and the Secrets that are made beside them."""

import functools
import os
import pathlib
import subprocess
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())


@functools.cache
def overlay(name):
    """The objects of an overlay."""
    return _kustomize(KUBERNETES / "overlays" / name)


@functools.cache
def with_component(name):
    """The objects of the base with one component, and the images of the trial."""
    trial = yaml.safe_load((KUBERNETES / "overlays/trial/kustomization.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        up = os.path.relpath(KUBERNETES, pathlib.Path(folder).resolve())
        kustomization = {
            "namespace": "tidegate",
            "images": trial["images"],
            "resources": [f"{up}/base"],
            "components": [f"{up}/components/{name}"],
        }
        pathlib.Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _kustomize(folder)


@functools.cache
def secrets():
    """The Secrets that the script makes, by name, with their keys."""
    environment = {"PATH": os.environ["PATH"], "SEARCH_CONSOLE_KEY": __file__}
    made = _run([KUBERNETES / "secrets.sh"], environment)
    return {secret["metadata"]["name"]: secret for secret in yaml.safe_load_all(made)}


def _kustomize(folder):
    return tuple(yaml.safe_load_all(_run(["kubectl", "kustomize", folder])))


def _run(command, environment=None):
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
