"""Nothing that is read is executed, and no name in it leads out of the folder it belongs to."""

from __future__ import annotations

import ast
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from spafit_bench.analysis.references import read_references
from spafit_bench.base.checksums import SUMS, read_sums
from spafit_bench.base.errors import DamagedError, UserError
from spafit_bench.base.yaml_files import read_mapping
from spafit_bench.config.run_config import load_sources
from spafit_bench.config.sweep import read_sweep
from spafit_bench.methods.method import get_method
from spafit_bench.models.checkpoint import find_checkpoint, weight_files
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from tests.conftest import REPOSITORY, Cli, write_checkpoint
from tests.support.records import make_record, write_run

SOURCES = sorted((REPOSITORY / "spafit_bench").rglob("*.py"))
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "torch.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load", "pd.read_pickle",
    "runpy.run_path", "importlib.import_module", "__import__",
}  # fmt: skip


def test_no_module_can_execute_what_it_reads() -> None:
    """No pickle, no unsafe YAML, no eval, no code from a hub repository, no shell."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not {a.name.partition(".")[0] for a in node.names} & FORBIDDEN, where
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in FORBIDDEN, where
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in CALLS, where
                for keyword in node.keywords:
                    value = ast.unparse(keyword.value)
                    assert keyword.arg != "trust_remote_code" or value == "False", where
                    assert keyword.arg != "shell" or value == "False", where
                    assert keyword.arg != "use_safetensors" or value == "True", where
                    assert keyword.arg != "allow_pickle" or value == "False", where


HOSTILE = "!!python/object/apply:os.system ['touch {mark}']"


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    """Configurations, sweeps, methods, references and --set refuse tags that construct things."""
    mark = tmp_path / "mark"
    text = HOSTILE.format(mark=mark)
    path = tmp_path / "hostile.yaml"
    path.write_text(f"description: {text}\n")
    for read in (
        lambda: read_mapping(path),
        lambda: read_sweep(path, {}),
        lambda: read_references(path),
        lambda: get_method(str(path)),
        lambda: load_sources(preset=None, config=path, assignments=(), flags={}),
        lambda: load_sources(preset=None, config=None, assignments=(f"seed={text}",), flags={}),
    ):
        with pytest.raises(UserError, match="not valid YAML"):
            read()
    assert not mark.exists()


def test_code_of_a_checkpoint_is_not_run(call: Cli, tmp_path: Path, data: Path) -> None:
    """`auto_map` names Python files of the repository; they lie there and stay unread."""
    folder = write_checkpoint(tmp_path / "model")
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')\n"
    names = ("configuration_own.py", "modeling_own.py", "tokenization_own.py", "__init__.py")
    for name in names:
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForSequenceClassification": "modeling_own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    args = ("run", "--task", "mrpc", "--method", "lora", "--model", folder, "--data", data)
    answer = call(*args, "--precision", "fp32", "--epochs", "1", "--max-length", "32")
    assert answer.code == 0, answer.err
    assert not mark.exists()


def test_nothing_in_a_results_folder_is_executed(cli: Cli, tmp_path: Path) -> None:
    """Python files that would be imported from the working directory, in every folder of it."""
    results = tmp_path / "results"
    folder = write_run(results / "runs", make_record())
    mark = tmp_path / "mark"
    for place in (results, results / "runs", folder, tmp_path):
        for name in ("json.py", "torch.py", "pandas.py", "sitecustomize.py", "record.py"):
            (place / name).write_text(f"open({str(mark)!r}, 'w')\n")
    import subprocess
    import sys

    from tests.conftest import MAIN, clean_environment

    for where in (results, folder):
        done = subprocess.run(  # as the installed script: the working directory is not on the path
            [sys.executable, "-P", "-c", MAIN, "show", "mrpc-spafit", "--results", str(results)],
            env=clean_environment(),
            cwd=where,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not mark.exists()


OUTWARD = ["../up", "/absolute", "a/b", "..", ".", "", ".hidden", "nul\0", "x" * 300, "a\\..\\b/"]


@pytest.mark.parametrize("name", OUTWARD)
def test_names_in_records_lead_nowhere(call: Cli, tmp_path: Path, name: str) -> None:
    """A run's name is a plain file name; a record with another is none."""
    body = make_record().model_dump(mode="json") | {"run_id": name}
    with pytest.raises(ValidationError, match="run_id"):
        RunRecord.model_validate(body)
    store = Store(tmp_path / "results")
    store.save(make_record(), {})
    assert store.find(name) is None
    with pytest.raises(UserError, match="not a run id"):
        store.snapshot_path(name)
    with pytest.raises(UserError, match="not a run id"):
        RunLocks(tmp_path).acquire(name)
    if "\0" not in name:
        assert call("show", name or "x").code == 2


def test_names_in_checksums_lead_nowhere(tmp_path: Path) -> None:
    """A line for a file outside the folder is damage."""
    for name in ("../x", "/etc/passwd", "a/b", ".."):
        (tmp_path / SUMS).write_text(f"{'0' * 64}  {name}\n")
        with pytest.raises(DamagedError, match="not a list of checksums"):
            read_sums(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/x.safetensors", "a/../../b"])
def test_names_in_an_index_of_weights_lead_nowhere(tmp_path: Path, name: str) -> None:
    """Shards lie in the checkpoint's folder."""
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"bert.pooler.dense.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not a file of the folder"):
        weight_files(folder)
    with pytest.raises(UserError, match="not a file of the folder"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["../../escape", "/escape", "..", "a/b c\0d"])
def test_names_in_configurations_lead_nowhere(
    call: Cli, tmp_path: Path, data: Path, name: str
) -> None:
    """Whatever a method or a model calls itself, its run's folder lies in `runs`."""
    model = write_checkpoint(tmp_path / "odd .. name")
    method = {"name": name, "defaults": "lora", "strata": [{"layers": "all", "treatment": "bias"}]}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(method))
    before = {p for p in tmp_path.rglob("*") if "results" not in p.parts}
    args = ("run", "--task", "mrpc", "--method", "m.yaml", "--model", model, "--data", data)
    answer = call(*args, "--precision", "fp32", "--epochs", "1", "--max-length", "32")
    assert answer.code in (0, 2), answer.err
    if answer.code == 0:
        assert call("table").code == 0
        (run,) = (tmp_path / "results" / "runs").glob("[!.]*")
        assert (run / "record.json").is_file()
    assert {p for p in tmp_path.rglob("*") if "results" not in p.parts} == before
    assert "unknown task" in call("run", "--task", "../x", "--method", "lora").error


def test_a_lock_that_is_a_link_empties_no_file(tmp_path: Path) -> None:
    """A results folder from elsewhere cannot make us truncate a file of ours."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    store = Store(tmp_path / "results")
    store.root.mkdir()
    (store.root / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match=r"\.lock: is a symbolic link"):
        store.save(make_record(), {})
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_every_file_has_ordinary_permissions(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path, umask: int
) -> None:
    """As the umask says, nothing executable: runs, tables, snapshots, exports, submissions."""
    before = os.umask(umask)
    try:
        args = ("--model", checkpoint, "--data", data, "--precision", "fp32", "--max-length", "32")
        assert call("run", "--task", "mrpc", "--method", "lora", "--epochs", "1", *args).code == 0
        store = Store(tmp_path / "results")
        store.keep_snapshot("run", b"state")
        store.set_aside(store.snapshot_path("run"), "why")
        store.keep_snapshot("run", b"state")
        assert call("table").code == 0
        assert call("export", "mrpc-lora", "--to", "out").code == 0
        zip_ = call("submit", "--method", "lora", "--out", "x.zip", "--fill-majority")
        assert zip_.code == 0, zip_.err
    finally:
        os.umask(before)
    made = [*(tmp_path / "results").rglob("*"), *(tmp_path / "out").rglob("*"), tmp_path / "x.zip"]
    assert len(made) > 15
    for path in made:
        ordinary = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == ordinary, path
    shutil.rmtree(tmp_path / "out")
