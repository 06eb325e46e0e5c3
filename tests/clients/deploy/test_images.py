"""The files that images and containers are made from."""

import sys
from pathlib import Path

import pytest
import yaml

from stack import DEPLOY, output_of

BIN = Path(sys.executable).parent
COMPOSE = DEPLOY / "compose.yaml"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_dockerfiles_by_hadolint(name):
    output_of(BIN / "hadolint", DEPLOY / name)


def test_compose_by_its_schema():
    output_of(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_what_compose_mounts_and_names_is_there():
    compose = yaml.safe_load(COMPOSE.read_text())
    services = compose["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            exists = (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert exists, f"{name}: {source}"
    # Whom they ask for is one of them: sconce:8000, otel-collector:4317 and so on.
    asked = (DEPLOY / "otel-collector.yaml").read_text() + (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for name in ("jaeger:4317", "sconce:8000", "alertmanager:9093"):
        assert name in asked and name.split(":")[0] in services


def test_the_collector_uses_what_it_defines():
    config = yaml.safe_load((DEPLOY / "otel-collector.yaml").read_text())
    for name, pipeline in config["service"]["pipelines"].items():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) == config[kind].keys(), f"{name}: {kind}"
