"""The rules of Prometheus: every alert fires and stays silent when it should, and has its runbook."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.metrics_page import declared, page
from streams.settings import KafkaSettings, Settings
from streams.topics import topic_names
from tests.support.prometheus import DEPLOYED, binary
from tests.support.stack import ROOT
from trainers.recipe import Recipe

CASES = sorted((ROOT / "tests" / "prometheus").glob("*.yml"))
RULES = [
    rule
    for file in sorted((DEPLOYED / "rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
SERIES = re.compile(r"\b(?:vllm|haypile|[a-z_]+:haypile)[:_][a-zA-Z0-9_:]+")


def promtool(*arguments: str) -> str:
    done = subprocess.run([binary("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def known_series() -> set[str]:
    """Everything that can be asked for: what is declared, and what is recorded from it."""
    names = set(RECORDED)
    for metric in (metric for metrics in declared().values() for metric in metrics):
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_promtool_finds_the_rules_to_do_as_their_tests_say(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(file))


def test_the_configuration_is_valid() -> None:
    assert "2 rule files found" in promtool("check", "config", str(DEPLOYED / "prometheus.yml"))


def test_every_alert_is_tested_to_fire_and_to_be_silent() -> None:
    fires, silent = set(), set()
    for case in (case for file in CASES for case in yaml.safe_load(file.read_text("utf-8"))["tests"]):
        for look in case["promql_expr_test"]:
            found = re.fullmatch(r'ALERTS\{alertname="(\w+)",alertstate="firing"\}', look["expr"])
            if found:
                (fires if look["exp_samples"] else silent).add(found[1])
    assert fires == silent == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_its_runbook_and_says_what_it_means(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    notes = alert["annotations"]
    assert notes["summary"] and notes["description"]
    document, _, anchor = notes["runbook_url"].partition("#")
    assert anchor == name.lower(), "as the heading's anchor is made"
    sections = (ROOT / document).read_text("utf-8").split("\n### ")
    [text] = [section for section in sections if section.splitlines()[0] == name]
    assert all(part in text for part in ("**Seen**", "**Means**", "**Do**"))


def test_no_runbook_is_of_an_alert_that_is_gone() -> None:
    headings = re.findall(r"^### (Haypile\w+)$", (ROOT / "docs" / "operations.md").read_text("utf-8"), re.MULTILINE)
    assert set(headings) == ALERTS.keys()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_is_declared(rule: dict[str, Any]) -> None:
    asked = set(SERIES.findall(rule["expr"]))
    assert asked <= known_series()
    assert asked or "up{" in rule["expr"]


def test_the_page_of_metrics_is_the_one_of_the_code() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert text == page(), "python -m deploy.metrics_page > docs/metrics.md"


def test_metrics_are_named_as_promised() -> None:
    for metric in (metric for metrics in declared().values() for metric in metrics):
        assert re.fullmatch(r"haypile(_[a-z0-9]+)+", metric.name)
        assert metric.help.endswith(".")
        assert not {"id", "prompt_id", "run_id", "user_id"} & set(metric.labels)
        assert not metric.name.endswith(("_ms", "_milliseconds", "_kb", "_mb"))


def test_the_settings_that_runbooks_name_exist() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    topics = topic_names(KafkaSettings()).all()
    for section, name in re.findall(r"`([a-z]+)\.([a-z_]+)`", text):
        if f"{section}.{name}" in topics or name in ("json", "log"):
            continue
        fields = Recipe.model_fields if section in Recipe.model_fields else Settings.model_fields
        annotation: Any = fields[section].annotation
        assert name in annotation.model_fields, f"{section}.{name}"


def test_what_the_documents_name_exists() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for document in documents:
        named = set(re.findall(r"`(haypile_[a-z0-9_]+)(?:\{[^`]*\})?`", document.read_text("utf-8")))
        plain = {metric.name for metrics in declared().values() for metric in metrics}
        assert named <= known_series() | plain, document.name
