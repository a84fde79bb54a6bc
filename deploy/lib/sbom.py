"""Checks bills of materials against Cargo.lock, takes this machine out of them, and puts them into a folder.

usage: sbom.py FOLDER DOCUMENT..., from the repository's root
"""

import json
import pathlib
import sys
import tomllib

# Without these it would be another program.
EXPECTED = ("lapin", "tokio", "serde")


def locked():
    """Every package of Cargo.lock: name, version, and where it comes from."""
    packages = tomllib.loads(pathlib.Path("Cargo.lock").read_text())["package"]
    return {(package["name"], package["version"]): package.get("checksum") for package in packages}


def problems(document, lock):
    """What is wrong with a document, in words."""
    if document.get("bomFormat") != "CycloneDX" or document.get("specVersion") != "1.5":
        yield "it is no CycloneDX 1.5"
        return
    components = document.get("components", [])
    references = [component.get("bom-ref") for component in components]
    if None in references or len(set(references)) < len(references):
        yield "its components cannot be told apart"
    for component in components:
        name, version = component.get("name"), component.get("version")
        if (name, version) not in lock:
            yield f"{name} {version} is not in Cargo.lock"
        elif not component.get("purl", "").startswith(f"pkg:cargo/{name}@{version}"):
            yield f"{name} {version} has the package URL {component.get('purl')!r}"
        checksum = lock.get((name, version))
        hashes = [digest["content"] for digest in component.get("hashes", []) if digest["alg"] == "SHA-256"]
        if checksum and hashes not in ([], [checksum]):
            yield f"{name} {version} has another hash than in Cargo.lock"
    names = {component.get("name") for component in components}
    yield from (f"it does not list {name}" for name in EXPECTED if name not in names)
    known = {document["metadata"]["component"]["bom-ref"], *references}
    for dependency in document.get("dependencies", []):
        unknown = {dependency["ref"], *dependency.get("dependsOn", [])} - known
        if unknown:
            yield f"it depends on what it does not list: {', '.join(sorted(unknown))}"


def main():
    """Refuses all documents when one is wrong."""
    folder, lock, root = pathlib.Path(sys.argv[1]), locked(), str(pathlib.Path.cwd())
    done = []
    for name in sys.argv[2:]:
        path = pathlib.Path(name)
        # References of our own crates are paths.
        document = json.loads(path.read_text().replace(root, "/tidegate"))
        found = list(problems(document, lock))
        if found:
            sys.exit("\n".join(f"{name}: {problem}" for problem in found))
        target = folder / path.name.replace("_bin", "")
        done.append((target, json.dumps(document, indent=1, sort_keys=True) + "\n", len(document["components"])))
    for target, text, count in done:
        target.write_text(text)
        print(f"{target}: {count} components", file=sys.stderr)


if __name__ == "__main__":
    main()
