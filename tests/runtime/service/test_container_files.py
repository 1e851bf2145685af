"""Container files as far as they can be checked without a daemon: they parse, and what they start exists."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
KNOWN = {
    "FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "CMD",
    "ENTRYPOINT",
}  # fmt: skip


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of `fairy serve`."""
    run = [sys.executable, "-P", "-m", "fairy.runtime.cli", "serve", "--help"]
    text = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z-]+", text))


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def _check_words(words: list[str], options: set[str]) -> None:
    assert words[0] == "serve"
    assert {word for word in words if word.startswith("--")} <= options


def test_the_dockerfile(options: set[str]) -> None:
    instructions = _instructions()
    assert {word for word, _ in instructions} <= KNOWN
    last = dict(instructions)
    assert last["USER"] == "fairy"
    assert json.loads(last["ENTRYPOINT"]) == ["fairy"]
    _check_words(json.loads(last["CMD"]), options)
    assert "/health" in last["HEALTHCHECK"]
    json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    assert "[serve" in next(rest for word, rest in instructions if "pip install" in rest)


def test_compose_and_kubernetes(options: set[str]) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(compose["services"]) == {"cpu", "cuda"}
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["ports"] == ["127.0.0.1:8000:8000"]
    text = (ROOT / "docs" / "service.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    stateful: dict[str, Any] = yaml.safe_load(block)
    pod = stateful["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    _check_words(container["args"], options)
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]} | claims
    assert pod["securityContext"]["runAsNonRoot"] is True
