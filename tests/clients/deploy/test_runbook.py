"""The runbook against what it speaks of: alerts, panels, commands, and what spans have."""

import itertools
import json
import re
import shlex

import pytest
import yaml

from server import setting
from stack import DEPLOY, output_of

TEXT = (DEPLOY / "RUNBOOK.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in TEXT.split("\n## ")[1:]}
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
COMMANDS = sorted({line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()})


def test_every_alert_has_its_section_and_leads_to_it():
    assert list(SECTIONS) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{rule['alert'].lower()}"
        parts = re.findall(r"^\*\*(.+?)\*\*", SECTIONS[rule["alert"]], re.M)
        assert parts == ["Means", "First look", "Remedies", "Roll back"], rule["alert"]
        assert re.search(r"[Tt]race", SECTIONS[rule["alert"]]), f"{rule['alert']}: no word on traces"


def test_every_panel_it_names_is_there_and_every_alert_has_one():
    panels = {
        f"{path.stem} / {panel['title']}"
        for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
    }
    for alert, section in SECTIONS.items():
        named = {re.sub(r"\s+", " ", one) for one in re.findall(r"\*((?:overview|model|rollout|drift|capacity)\s/[^*]+)\*", section)}
        assert named and named <= panels, f"{alert}: {named - panels}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_it_gives_is_one_of_sconce(command):
    program, *words = shlex.split(command)
    assert program == "sconce"
    names = list(itertools.takewhile(re.compile("[a-z]+").fullmatch, words))
    told = output_of(setting("SCONCE_BIN"), *names, "--help")
    usage = re.search(r"Usage: sconce (.*)", told)[1]
    assert usage.split()[: len(names)] == names
    # Its flags, and as many arguments as it takes.
    flags = [word for word in words[len(names) :] if word.startswith("--")]
    assert all(re.search(rf"{flag}\b", told) for flag in flags), told
    arguments = [word for word in words[len(names) :] if word not in flags]
    taken = len([flag for flag in flags if re.search(rf"{flag} <", told)])
    required = re.findall(r"(?<!\[)<[A-Z]+>", usage)
    optional = re.findall(r"\[[A-Z]+\]", usage)
    assert len(required) <= len(arguments) - taken <= len(required) + len(optional), f"{command}: {usage}"


def test_every_attribute_it_asks_traces_for_is_one_that_spans_have():
    spans = "".join(path.read_text() for path in (DEPLOY.parent / "crates" / "sconce-telemetry" / "src" / "traces").glob("*.rs"))
    asked = set(re.findall(r"\b(?:sconce|rpc)\.[a-z_.]+[a-z]\b(?==|`)", TEXT))
    asked = {one for one in asked if not one.endswith(".toml")}
    assert len(asked) >= 5 and all(f'"{name}"' in spans for name in asked), asked
    for reason in re.findall(r"sconce\.kept_for=(\w+)", TEXT):
        assert f'=> "{reason}"' in spans
