"""The bill of materials of a production installation, as CycloneDX JSON.

It lists the packages of requirements-production.lock for this system, and the vendored files of
the console. Nothing in it depends on the time or the machine's folders, so that two runs are equal.
https://cyclonedx.org/docs/1.6/json/
"""

import base64
import json
from typing import Any

from gateway import __version__
from tests.release.licences import licence_of, read_rules, read_vendored
from tests.release.packages import (
    PRODUCTION_LOCK,
    PROJECT,
    Pinned,
    dependencies,
    installed,
    locked,
)

SPECIFICATION = "1.6"
EXTRAS = ("otel",)
"""The extras that the production lock is made with."""


def bill_of_materials() -> str:
    """Return the document."""
    rules = read_rules()
    packages = [one for one in locked(PRODUCTION_LOCK) if one.is_for_this_machine()]
    graph = dependencies(*EXTRAS)
    components = [
        _python_component(
            one, licence_of(one, rules), scope="required" if one.name in graph else "excluded"
        )
        for one in packages
    ]
    references = {one.name: _purl(one.name, one.version) for one in packages}
    vendored = [_vendored_component(one) for one in read_vendored()]
    root = _purl(PROJECT, __version__)
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "version": 1,
        "metadata": {"component": _root_component(root)},
        "components": sorted(components + vendored, key=lambda one: str(one["bom-ref"])),
        "dependencies": [
            {
                "ref": root,
                "dependsOn": sorted(
                    [references[name] for name in graph[PROJECT]]
                    + [one["bom-ref"] for one in vendored]
                ),
            },
            *[
                {
                    "ref": references[name],
                    "dependsOn": sorted(references[one] for one in graph.get(name, ())),
                }
                for name in sorted(references)
            ],
            *[{"ref": one["bom-ref"]} for one in vendored],
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def _root_component(reference: str) -> dict[str, Any]:
    return {
        "type": "application",
        "bom-ref": reference,
        "name": PROJECT,
        "version": __version__,
        "purl": reference,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }


def _python_component(package: Pinned, licence: str, *, scope: str) -> dict[str, Any]:
    """Describe a package. `scope` is "excluded" for what only builds the gateway."""
    reference = _purl(package.name, package.version)
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": package.name,
        "version": package.version,
        "scope": scope,
        "licenses": [{"expression": licence}],
        "purl": reference,
    }
    found = installed(package)
    if found is not None and "Summary" in found.metadata:
        component["description"] = found.metadata["Summary"]
    # An archive for each platform, of which an installation has one.
    component["externalReferences"] = [
        {
            "type": "distribution",
            "url": reference,
            "hashes": [{"alg": "SHA-256", "content": one} for one in package.sha256],
        }
    ]
    return component


def _vendored_component(project: dict[str, Any]) -> dict[str, Any]:
    reference = f"pkg:npm/{project['name']}@{project['version']}"
    algorithm, digest = project["integrity"].split("-", 1)
    if algorithm != "sha512":
        raise ValueError(f"{project['name']}: expected a hash by sha512, not {algorithm}.")
    return {
        "type": "library",
        "bom-ref": reference,
        "name": project["name"],
        "version": project["version"],
        "scope": "required",
        "hashes": [{"alg": "SHA-512", "content": base64.b64decode(digest).hex()}],
        "licenses": [{"license": {"id": project["licence"]}}],
        "purl": reference,
        "components": [
            {
                "type": "file",
                "name": f"gateway/console/static/{one['path']}",
                "hashes": [{"alg": "SHA-256", "content": one["sha256"]}],
            }
            for one in project["files"]
        ],
    }
