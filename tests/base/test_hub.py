"""The hub path, against a small hub on this machine and in processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spafit_bench.data.tasks import TASKS
from tests.support.glue_files import rows_of, write_hub
from tests.support.hub_server import COMMIT, HubServer

FETCH = """
import json, sys
from spafit_bench.base.errors import UserError
from spafit_bench.base.hub import fetch
request = json.loads(sys.argv[1])
try:
    fetched = fetch(**({"revision": None, "offline": False} | request))
except UserError as error:
    sys.exit(f"UserError: {error}")
names = sorted(p.relative_to(fetched.path).as_posix() for p in fetched.path.rglob("*.*"))
print(fetched.revision, *names)
"""
LOAD = """
import sys
from spafit_bench.data.load import load_task_data
from spafit_bench.base.errors import UserError
from spafit_bench.data.custom_tasks import find_task
from spafit_bench.base import hub
if "impatient" in sys.argv:
    hub.ANSWER_TIMEOUT_S = 1.0
try:
    data = load_task_data(find_task(sys.argv[1]).task, "hub", offline="offline" in sys.argv)
except UserError as error:
    sys.exit(f"UserError: {error}")
print(data.source, *data.splits)
"""
MODEL = '{"repo_id": "%s", "repo_type": "model", "patterns": ["config.json", "*.safetensors"]%s}'


@dataclass
class Client:
    """Runs the package's hub path in a process of its own."""

    cache: Path
    url: str

    def run(self, code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `code`; never with the environment's own hub settings."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.cache)}
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            env=clean | hub | env,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def fails(self, code: str, *args: str, **env: str) -> str:
        """Run `code` and return its one message."""
        result = self.run(code, *args, **env)
        assert result.returncode == 1, result.stdout
        assert result.stderr.startswith("UserError: "), result.stderr
        return result.stderr


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """Serve rte and cola data and two models, one of them gated."""
    root = tmp_path / "root"
    for name in ("rte", "cola"):
        write_hub(root / "datasets/nyu-mll/glue", TASKS[name], rows_of(TASKS[name]))
    for name in ("tiny-bert", "org/locked"):
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "config.json").write_text("{}")
        (root / "models" / name / "model.safetensors").write_bytes(b"weights")
        (root / "models" / name / "pytorch_model.bin").write_bytes(b"pickle")
    (root / "models/org/pickled").mkdir()
    for file in ("config.json", "pytorch_model.bin"):
        (root / "models/org/pickled" / file).write_text("{}")
    with HubServer(root, gated=("org/locked",)) as server:
        yield server


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    """A client of that hub with an empty cache."""
    return Client(tmp_path / "cache", hub.url)


def test_data_are_fetched_then_cached(hub: HubServer, client: Client) -> None:
    """Only the task's files are asked for; with the hub gone, the cache serves."""
    result = client.run(LOAD, "rte")
    assert result.stdout.split() == [f"nyu-mll/glue@{COMMIT}", "train", "validation", "test"]
    assert result.stderr == ""
    resolved = [line for line in hub.requests if "/resolve/" in line]
    assert len({line.split()[1] for line in resolved}) == 3
    assert all("/rte/" in line for line in resolved)
    hub.stop()
    for options in ([], ["offline"]):
        assert client.run(LOAD, "rte", *options).stdout == result.stdout
    assert client.run(LOAD, "rte", HF_HUB_OFFLINE="1").stdout == result.stdout


def test_a_task_outside_the_cache_is_said(hub: HubServer, client: Client) -> None:
    """A cache that has another task of the same repository is no help, and no mystery."""
    assert client.run(LOAD, "rte").returncode == 0
    hub.stop()
    error = client.fails(LOAD, "cola")
    assert "the hub cannot be reached" in error
    assert "the cache does not have cola/train-*.parquet" in error
    assert "--offline is set" in client.fails(LOAD, "cola", "offline")


def test_offline_asks_the_hub_nothing(hub: HubServer, client: Client) -> None:
    """Not even whether it is there."""
    client.fails(LOAD, "rte", "offline")
    assert hub.requests == []


def test_a_task_that_the_repository_lacks_is_said(client: Client) -> None:
    """Reached, but without the files."""
    assert "has no sst2/train-*.parquet" in client.fails(LOAD, "sst2")


def test_a_model_is_fetched_without_pickles(client: Client) -> None:
    """Patterns decide what comes; a commit can be named."""
    expected = f"{COMMIT} config.json model.safetensors"
    assert client.run(FETCH, MODEL % ("tiny-bert", "")).stdout.strip() == expected
    pinned = MODEL % ("tiny-bert", f', "revision": "{COMMIT}"')
    assert client.run(FETCH, pinned).stdout.strip() == expected


def test_each_refusal_is_said_plainly(client: Client) -> None:
    """Unknown repository, unknown revision, gated, and what cannot be a name."""
    assert "the hub has no model 'nope'" in client.fails(FETCH, MODEL % ("nope", ""))
    unknown = client.fails(FETCH, MODEL % ("tiny-bert", ', "revision": "v9"'))
    assert "no model 'tiny-bert' at revision 'v9': check --revision" in unknown
    assert "is gated: accept its terms" in client.fails(FETCH, MODEL % ("org/locked", ""))
    assert "there is no such folder" in client.fails(FETCH, MODEL % ("../some/folder", ""))


def test_pickled_weights_on_the_hub_are_named(hub: HubServer, client: Client) -> None:
    """They are not fetched, so what is in the cache says nothing of them."""
    code = (
        "from spafit_bench.models.checkpoint import find_checkpoint\n"
        "import sys\nfrom spafit_bench.base.errors import UserError\n"
        "try: find_checkpoint(sys.argv[1])\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    said = client.run(code, "org/pickled").stderr
    assert "org/pickled has no model.safetensors on the hub; pickled weights are refused" in said


def test_an_unreachable_hub_names_the_ways_out_at_once(tmp_path: Path) -> None:
    """A refused connection and a silent server both end within seconds."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        port = silent.getsockname()[1]
        silent_url = f"http://127.0.0.1:{port}"
        for url, options in (("http://127.0.0.1:9", []), (silent_url, ["impatient"])):
            start = time.perf_counter()
            error = Client(tmp_path, url).fails(LOAD, "rte", *options)
            assert time.perf_counter() - start < 10
            for said in ("--data PATH", "--model PATH", "--preset smoke", url):
                assert said in error


def test_importing_the_module_does_not_import_the_library() -> None:
    """`--help` stays fast."""
    code = "import sys, spafit_bench.base.hub; print('huggingface_hub' in sys.modules)"
    assert Client(Path(), "").run(code).stdout.strip() == "False"


def test_a_task_beyond_glue_has_a_repository_of_its_own(tmp_path: Path) -> None:
    """WiC from SuperGLUE's: only its own files are fetched, the ones its description names."""
    root = tmp_path / "root"
    row = {"word": "dog", "sentence1": "a dog", "sentence2": "the dog", "label": 1}
    for name in ("wic/train", "wic/validation", "wic/test", "boolq/train"):
        path = root / "datasets/aps/super_glue" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row] * 2), path)
    with HubServer(root) as hub:
        done = Client(tmp_path / "hf", hub.url).run(LOAD, "wic")
        asked = " ".join(hub.requests)
    assert done.stdout.split() == [f"aps/super_glue@{COMMIT}", "train", "validation", "test"]
    assert "boolq/train-" not in asked
