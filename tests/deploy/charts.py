"""Lint and render the Helm chart; write or compare deploy/kubernetes. Runs in .venv/deploy.

    .venv/deploy/bin/python tests/deploy/charts.py [--check]

Exit status 1, with every problem on standard error, if the chart or its manifests are wrong.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/image-gateway"
MANIFESTS = ROOT / "deploy/kubernetes"
SERVICE_MONITOR = Path(__file__).with_name("servicemonitor.schema.json")
VERSIONS = ("1.31", "1.37")
NAMESPACE = "image-gateway"
HEADER = """\
# The Helm chart as plain manifests, for clusters without Helm: images in {what}.
# `make manifests` writes this file from deploy/helm/image-gateway. What to change: docs/deploy.md.
"""
RENDERED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "s3.yaml": ("S3", {}),
    "pvc.yaml": ("files on a shared volume", {"storage": {"kind": "pvc"}}),
}
EVERYTHING: dict[str, Any] = {
    "autoscaling": {"enabled": True},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "images-tls"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "modelsFile": "[[providers]]\nname = 'cluster'\n",
    "storage": {"s3": {"endpoint": "http://s3:8333", "existingSecret": "s3"}},
    "imagePullSecrets": [{"name": "registry"}],
    "podAnnotations": {"team": "images"},
    "nodeSelector": {"disk": "local"},
    "tolerations": [{"operator": "Exists"}],
    "networkPolicy": {"from": [{"namespaceSelector": {}}]},
    "serviceAccount": {"annotations": {"role": "images"}},
}
REFUSED: Mapping[str, dict[str, Any]] = {
    "an unknown value": {"replica": 3},
    "a secret as a setting": {"settings": {"OPENAI_API_KEY": "sk-secret"}},
    "a number as a setting": {"settings": {"GATEWAY_WORKERS": 2}},
    "a store that does not exist": {"storage": {"kind": "gcs"}},
    "an address with a path": {"publicUrl": "https://images.example.com/gateway"},
    "no secret": {"existingSecret": ""},
}


def main() -> None:
    """Render, validate, and write or compare."""
    problems = list(_problems(check="--check" in sys.argv[1:]))
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


def _problems(*, check: bool) -> Iterator[str]:
    yield from (str(one) for one in lint(str(CHART), strict=True)["errors"])
    with Chart.load(str(CHART)) as chart:
        for name, (what, values) in RENDERED.items():
            documents = _render(chart, values)
            yield from _invalid(name, documents)
            text = HEADER.format(what=what) + _as_text(documents)
            target = MANIFESTS / name
            if not check:
                target.write_text(text)
            elif not target.exists() or target.read_text() != text:
                yield f"{target.relative_to(ROOT)} is not what the chart renders: make manifests"
        yield from _invalid("everything", _render(chart, EVERYTHING))
        for what, values in REFUSED.items():
            try:
                _render(chart, values)
            except HelmError:
                continue
            yield f"The chart accepts {what}: {values}"


def _render(chart: Chart, values: dict[str, Any]) -> list[dict[str, Any]]:
    chart.validate_schema(values)
    rendered = chart.render(values=values, name="image-gateway", namespace=NAMESPACE)
    found = [
        document
        for name, text in sorted(rendered.items())
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    return sorted(
        found, key=lambda one: (one["kind"] == "Job", one["kind"], one["metadata"]["name"])
    )


def _invalid(name: str, documents: list[dict[str, Any]]) -> Iterator[str]:
    monitor = json.loads(SERVICE_MONITOR.read_text())
    for document in documents:
        where = f"{name}: {document['kind']} {document['metadata']['name']}"
        if document["kind"] == "ServiceMonitor":
            errors = jsonschema.Draft202012Validator(monitor).iter_errors(document)
            yield from (f"{where}: {error.message}" for error in errors)
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
                yield f"{where}, Kubernetes {version}: {error}"


def _as_text(documents: list[dict[str, Any]]) -> str:
    """The documents as YAML, without the marks of Helm."""
    for document in documents:
        document["metadata"].pop("annotations", None)
        template = document.get("spec", {}).get("template", {})
        for metadata in (document["metadata"], template.get("metadata", {})):
            for label in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
                metadata.get("labels", {}).pop(label, None)
    return "---\n" + str(yaml.safe_dump_all(documents, sort_keys=False, width=100))


if __name__ == "__main__":
    main()
