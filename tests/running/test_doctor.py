"""`doctor` says what this machine can do, and what to mend."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from spafit_bench.running.doctor import examine_machine
from tests.conftest import Cli
from tests.support.hub_server import HubServer


def by_name(answer: Any) -> dict[str, Any]:
    """Checks of a JSON answer by their names."""
    return {check["name"]: check for check in answer["checks"]}


def test_a_sound_machine(call: Cli) -> None:
    """Where the tests run everything needed is there, and nothing is left behind."""
    answer = call("doctor", "--offline", "--json")
    assert answer.code == 0, answer.out
    assert answer.json["sound"] is True
    checks = by_name(answer.json)
    assert checks["torch"]["found"] == importlib.metadata.version("torch")
    assert {"python", "packages", "device", "precision", "threads", "memory"} <= checks.keys()
    assert {"results", "cache", "hub cache", "hub", "ray", "tensorboard"} <= checks.keys()
    assert checks["hub"]["found"] == "not asked (--offline)"
    assert not list(Path.cwd().iterdir()), "a check leaves nothing behind"


def test_what_is_broken_is_mended_by_the_user(call: Cli, tmp_path: Path) -> None:
    """A results folder that cannot be written: exit code 2, and what to do."""
    (tmp_path / "file").touch()
    answer = call("doctor", "--offline", "--results", tmp_path / "file")
    assert answer.code == 2
    assert answer.err == ""
    assert "broken: results: make it writable, or choose another with --results DIR" in answer.out
    assert answer.out.rstrip().endswith("fix what is broken first")


def test_packages_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package too old and one that is missing are both named; extras are not asked for."""
    wanted = ["numpy>=99", "no-such-package-here>=1", "also-none; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    checks = {check.name: check for check in examine_machine(tmp_path, offline=True)}
    found = checks["packages"]
    assert found.verdict == "broken"
    assert "numpy" in found.found
    assert "no-such-package-here is missing" in found.found
    assert "also-none" not in found.found


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A torch that cannot compute breaks no other check."""
    from spafit_bench.models import numerics

    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(numerics, "choose_numerics", fail)
    checks = {check.name: check for check in examine_machine(tmp_path, offline=True)}
    assert checks["torch"].verdict == "broken"
    assert "no kernel image" in checks["torch"].found
    assert checks["memory"].verdict != "broken"


def test_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch, call: Cli, tmp_path: Path) -> None:
    """It answers or not; not reaching it is a note, since there are ways without."""
    from huggingface_hub import constants

    (tmp_path / "hub" / "datasets" / "nyu-mll" / "glue").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        up = call("doctor", "--json")
        assert any("nyu-mll/glue" in request for request in hub.requests)
    down = call("doctor", "--json")
    assert by_name(up.json)["hub"]["found"].endswith("answers"), up.out
    found = by_name(down.json)["hub"]
    assert found["verdict"] == "note"
    assert "cannot be reached" in found["found"]
    assert "--preset smoke" in found["fix"]
    assert down.code == 0


def test_an_offline_hub_is_not_asked(call: Cli) -> None:
    """HF_HUB_OFFLINE, as the tests have it, is honoured and named."""
    assert "HF_HUB_OFFLINE is set" in by_name(call("doctor", "--json").json)["hub"]["found"]
