"""Bad input: one message that names the culprit, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spafit_bench.cli import output
from tests.conftest import MAIN, REPOSITORY, Cli, clean_environment, write_checkpoint, write_data

Refused = Callable[..., str]
Edit = Callable[[Path], Any]


@pytest.fixture
def refused(call: Cli, tmp_path: Path, checkpoint: Path, data: Path) -> Refused:
    """Run with the given flags over good ones; return the message of the refusal."""

    def run(**flags: object) -> str:
        good = {"task": "mrpc", "method": "lora", "model": checkpoint, "data": data, "epochs": 1}
        before = set(tmp_path.iterdir())
        args: list[object] = []
        for key, value in (good | flags).items():
            args += [f"--{key.replace('_', '-')}", value]
        message = call("run", *args).error
        assert set(tmp_path.iterdir()) == before, "something was left behind"
        return message

    return run


def truncate(path: Path) -> None:
    """Keep the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def scramble(path: Path) -> None:
    """Replace a file by random bytes."""
    path.write_bytes(np.random.default_rng(7).bytes(2000))


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("task", "mrcp", "unknown task 'mrcp': did you mean 'mrpc'?"),
        ("task", "mrpc,nope", "unknown task 'nope': choices: axb"),
        ("task", ",", "--task ',' names nothing"),
        ("method", "spafti", "unknown method 'spafti': did you mean 'spafit'?"),
        ("method", "nope.yaml", "nope.yaml: no such file"),
        ("method", "all:loar(query,r=8,alpha=16)", "did you mean 'lora'?"),
        ("method", "all:lora(query,rank=8,alpha=16)", "unknown option 'rank=8'"),
        ("method", "all:lora(quary,r=8,alpha=16)", "did you mean 'query'?"),
        ("method", "0-0:bias", "leaves out layer 1 of an encoder of 2 layers"),
        ("method", "0-9:bias", "do not fit an encoder of 2 layers: valid layers are 0-1"),
        ("method", "spafit-30-40-i", "do not fit an encoder of 2 layers: valid layers are 0-1"),
        ("method", "spafit-1-0-i", "boundaries must not decrease"),
        ("preset", "smok", "unknown preset 'smok': did you mean 'smoke'?"),
        ("precision", "fp8", "precision = 'fp8': input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("device", "gpu", "device = 'gpu': choices: auto, cpu, cuda"),
        ("select", "bset", "select = 'bset': input should be 'last' or 'best'"),
        ("save-weights", "some", "save_weights = 'some'"),
        ("seed", "-1", "--seed '-1': write a number"),
        ("seed", "nan", "--seed 'nan': write a number"),
        ("seed", "1.5", "--seed '1.5': write a number"),
        ("seed", "4294967296", "--seed: seed = 4294967296: input should be less than 4294967296"),
        ("max-length", "7", "train.max_length = 7: input should be greater than or equal to 8"),
        ("max-length", "129", "--max-length 129: "),
        ("epochs", "1e300", "train.epochs = 1e+300: input should be less than or equal to 10000"),
        ("set", "method.rank", "--set method.rank: write key=value"),
        ("set", "=8", "--set =8: write key=value"),
        ("set", "train.lerning_rate=1", "did you mean 'learning_rate'?"),
        ("set", "rank=8", "unknown key 'rank': did you mean 'method.rank'?"),
        ("set", "method.rank=0", "method.rank = 0: input should be greater than or equal to 1"),
        ("set", f"method.rank={10**30}", "method.rank"),
        ("set", "method.rank=[[[[", "not valid YAML"),
        ("set", "train.schedule=cosine", "train.schedule = 'cosine'"),
        ("set", "train.adam_eps=on", "train.adam_eps = True: this must be a number"),
        ("set", "method=bitfit", "--method lora, but --set method=bitfit: name it once"),
        ("set", "method.name=bitfit", "--method lora, but --set method=bitfit: name it once"),
        ("set", "tasks.mrpc.train.adam_eps=1", "sections are for files"),
        ("set", "seed=3", "--set seed=3: use --seed"),
        ("set", "train=3", "train must be a mapping of settings"),
        ("data", "nowhere", "no such data folder: nowhere"),
        ("data", "mni", "did you mean 'mini'?"),
        ("model", "./nowhere", "--model ./nowhere: does not exist"),
    ],
)
def test_a_wrong_value_is_named(refused: Refused, flag: str, value: str, said: str) -> None:
    """The message quotes what was given and says what is possible."""
    assert said in refused(**{flag: value})


@pytest.mark.parametrize(
    "flag", ["lr", "epochs", "batch-size", "warmup", "limit", "weight-decay", "max-length"]
)
@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_numbers_that_are_none(call: Cli, tmp_path: Path, flag: str, value: str) -> None:
    """Negative, NaN and infinite numbers are refused, by the flag's or the setting's name."""
    answer = call("run", "--task", "mrpc", "--method", "lora", f"--{flag}", value)
    assert answer.code == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err
    name = {"lr": "learning_rate"}.get(flag, flag.replace("-", "_"))
    assert name in answer.err.replace("-", "_")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "--batch-size", "many"], "--batch-size"),
        (["run", "--fast"], "--fast"),
        (["rnu"], "run"),
        (["show"], "Usage: spafit-bench show"),
    ],
)
def test_usage_errors_name_the_flag(call: Cli, args: list[str], said: str) -> None:
    """What the command line itself cannot read is exit code 2, too."""
    answer = call(*args)
    assert answer.code == 2
    assert answer.out == ""
    assert said in answer.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--address", "box:6379"], "--address only applies to a Ray cluster: add --executor ray"),
        (["--gpus-per-run", 1], "--gpus-per-run only applies to a Ray cluster: add --executor ray"),
        (["--cpus-per-run", 2], "--cpus-per-run only applies to a Ray cluster: add --executor ray"),
        (["--executor", "ray", "--jobs", 2], "--jobs only applies to local runs"),
        (["--executor", "slurm"], "--executor slurm: choices: local, ray"),
    ],
)
def test_flags_of_a_cluster_without_one(call: Cli, args: list[object], said: str) -> None:
    """And the other way round: none is silently without effect."""
    assert said in call("sweep", "smoke", "--dry-run", *args).error


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--model", "no/such/folder", "does not exist"),
        ("--data", "nowhere", "no such data folder"),
        ("--device", "gpu", "choices: auto, cpu"),
        ("--device", "cuda", "no CUDA GPU is visible here"),
    ],
)
def test_inputs_that_do_not_exist_are_found_at_once(
    monkeypatch: pytest.MonkeyPatch, call: Cli, flag: str, value: str, said: str
) -> None:
    """Before torch and transformers are imported, which takes seconds."""

    def load_libraries() -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("spafit_bench.base.process.load_libraries", load_libraries)
    monkeypatch.setattr("spafit_bench.base.process.may_have_gpu", lambda: False)
    (Path.cwd() / "s.yaml").write_text("tasks: mrpc\nmethods: lora\nsettings: {limit: 8}")
    runs = ("run", "--task", "mrpc", "--method", "lora")
    for command in (runs, ("sweep", "s.yaml")):
        there = {"--model": "tiny-bert", "--data": "mini"} | {flag: value}
        flags = [text for pair in there.items() for text in pair]
        assert said in call(*command, *flags).error
    stored = next((REPOSITORY / "results" / "minilm-l6" / "runs").iterdir())
    predict, export = ("predict", stored, "--text", "a"), ("export", stored, "--to", "y")
    others = {"--model": (("plan",), predict, export), "--device": (predict,)}
    for command in others.get(flag, ()):
        assert said in call(*command, flag, value).error
    for name, *rest in (predict, export):
        assert "does not exist" in call(name, "x", *rest[1:]).error


def test_a_long_wait_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no terminal, a line tells after a while what the command waits for."""
    monkeypatch.setattr(output, "_SILENT_S", 0.01)
    with output.waiting("loading a model"):
        time.sleep(0.2)
    with output.waiting("nothing"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().err == "loading a model ...\n"


@pytest.mark.parametrize("closed", [">&-", ">/dev/full", "<&- >&- 2>/dev/full"])
def test_output_that_cannot_be_written(closed: str, tmp_path: Path) -> None:
    """One line and exit code 2, no traceback."""
    script = f'exec "$@" {closed}'
    command = ["bash", "-c", script, "-", sys.executable, "-c", MAIN, "list", "tasks"]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines == lines[:1]
    assert all(line.startswith("error: standard output cannot be written (") for line in lines)
    assert bool(lines) != ("2>" in closed)


def test_a_run_without_any_output_is_stored(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    """Its progress cannot be written either."""
    run = ("run", "--task", "mrpc", "--method", "bitfit", "--model", checkpoint, "--data", data)
    command = ["bash", "-c", 'exec "$@" >&- 2>/dev/full', "-", sys.executable, "-c", MAIN]
    done = subprocess.run(
        [*command, *map(str, run), "--epochs", "1"],
        cwd=tmp_path,
        env=clean_environment(HF_HUB_OFFLINE="1"),
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert [*tmp_path.glob("results/runs/*/predictions.parquet")]


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    """As `| head` leaves: no traceback, and not the code of a failed run."""
    command = [sys.executable, "-c", MAIN, "list", "tasks"]
    process = subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """The flag is named, and what there is instead."""
    import torch

    monkeypatch.setattr("spafit_bench.base.process.may_have_gpu", lambda: False)
    assert f"--device {device}: no CUDA GPU is visible here; use --device cpu" in refused(
        device=device
    )
    monkeypatch.setattr("spafit_bench.base.process.may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert f"--device {device}: no CUDA GPU is visible here; use --device cpu" in refused(
        device=device
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if device == "cuda:7":
        assert "--device cuda:7: only 2 GPU(s) here, cuda:0-cuda:1" in refused(device=device)


def test_lora_settings_without_lora(refused: Refused) -> None:
    """A setting that would change nothing looks like a result, so it is refused."""
    said = "method.rank has no effect: bitfit has no LoRA"
    assert said in refused(method="bitfit", set="method.rank=8")
    said = "method.alpha has no effect: full, bitfit has no LoRA"
    assert said in refused(method="full,bitfit", set="method.alpha=8")


def test_task_and_method_are_needed(call: Cli) -> None:
    """Each is asked for by name."""
    assert "--task is missing: give one of cola" in call("run", "--method", "lora").error
    assert "--method is missing: give one of full" in call("run", "--task", "mrpc").error


def test_debug_shows_the_traceback(call: Cli) -> None:
    """With --debug the same message and exit code come after a traceback."""
    answer = call("--debug", "run", "--task", "mrcp", "--method", "lora")
    assert answer.code == 2
    assert "Traceback" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: unknown task 'mrcp'")


@pytest.mark.parametrize(
    ("file", "edit", "said"),
    [
        ("train.jsonl", Path.unlink, "is missing: mrpc needs it for train"),
        ("train.jsonl", lambda path: path.write_bytes(b""), "the file is empty"),
        ("train.jsonl", truncate, "not JSON"),
        ("validation.jsonl", scramble, "not UTF-8"),
        ("test.jsonl", truncate, "not JSON"),
        ("train.csv", truncate, "fields, but 3 are needed"),
        ("validation.csv", scramble, "not UTF-8"),
        ("train.csv", Path.unlink, "is missing: mrpc needs it for train"),
    ],
)
def test_damaged_data_files(
    refused: Refused, tmp_path: Path, file: str, edit: Edit, said: str
) -> None:
    """Missing, empty, cut short and random bytes: the message names the file."""
    folder = write_data(tmp_path / "broken", "mrpc", kind=file.rpartition(".")[2])
    edit(folder / "mrpc" / file)
    message = refused(data=folder)
    assert said in message
    assert str(folder) in message
    assert Path(file).stem in message


@pytest.mark.parametrize("label", [2, -1, None, 0.5, True, "x", [1]])
def test_labels_out_of_range(refused: Refused, tmp_path: Path, label: object) -> None:
    """File, line and column are named, and what a label may be."""
    folder = write_data(tmp_path / "broken", "mrpc")
    path = folder / "mrpc" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["label"] = label
    path.write_text("\n".join(map(json.dumps, rows)))
    message = refused(data=folder)
    assert f"{path}, line 4, column 'label'" in message
    assert "mrpc takes 0 (not_equivalent) or 1 (equivalent)" in message


def test_a_wrong_column_and_a_task_that_is_not_there(
    refused: Refused, tmp_path: Path, data: Path
) -> None:
    """The nearest column, or what the folder has, is named."""
    folder = write_data(tmp_path / "broken", "mrpc")
    path = folder / "mrpc" / "validation.jsonl"
    path.write_text(path.read_text().replace('"sentence1"', '"sentense1"'))
    message = refused(data=folder)
    assert f"{path}, line 1: no column 'sentence1': did you mean 'sentense1'?" in message
    assert f"{data}: no data for rte here" in refused(task="mrpc,rte")


def _configure(**changes: object) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _index(text: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return edit


def _in(name: str, edit: Edit) -> Edit:
    return lambda folder: edit(folder / name)


def _writes(text: str) -> Edit:
    return lambda path: path.write_text(text)


BROKEN_MODELS: dict[str, tuple[Edit, str]] = {
    "empty folder": (lambda f: [path.unlink() for path in f.iterdir()], "no config.json"),
    "pickled": (_pickle, "pytorch_model.bin: pickled weights are refused"),
    "no weights": (_in("model.safetensors", Path.unlink), "no model.safetensors"),
    "weights cut short": (_in("model.safetensors", truncate), "not a readable safetensors file"),
    "random weights": (_in("model.safetensors", scramble), "not a readable safetensors file"),
    "empty weights": (_in("model.safetensors", _writes("")), "not a readable safetensors file"),
    "index of nothing": (_index('{"weight_map": {}}'), "no model.safetensors"),
    "a shard missing": (_index('{"weight_map": {"a": "b.safetensors"}}'), "names b.safetensors"),
    "index cut short": (_index('{"weight'), "not a readable index of weights"),
    "config cut short": (_in("config.json", truncate), "config.json: not readable as JSON"),
    "config random": (_in("config.json", scramble), "config.json: not readable as JSON"),
    "config a list": (_in("config.json", _writes("[]")), "config.json: must be a JSON object"),
    "unknown type": (_configure(model_type="gpt2"), "no parameter table for model type 'gpt2'"),
    "heads do not divide": (_configure(hidden_size=33), "config.json: no model can be built"),
    "wrong type": (_configure(hidden_size="x"), "hidden_size"),
    "unknown activation": (_configure(hidden_act="nope"), "config.json: no model can be built"),
    "other width": (_configure(hidden_size=64), "but the model asks for (64,)"),
    "a layer more": (_configure(num_hidden_layers=3), "encoder.layer.2"),
    "a layer less": (_configure(num_hidden_layers=1), "is of layer 1, but there are 1 layers"),
    "no layers": (_configure(num_hidden_layers=0), "an encoder needs at least one layer"),
    "vocabulary too small": (_configure(vocab_size=10), "the encoder has 10"),
    "no vocabulary": (_in("vocab.txt", Path.unlink), "no vocabulary in the checkpoint"),
    "empty vocabulary": (_in("vocab.txt", _writes("")), "the tokenizer is damaged"),
    "random vocabulary": (_in("vocab.txt", scramble), "tokenizer cannot be loaded"),
    "random tokenizer": (_in("tokenizer.json", scramble), "tokenizer cannot be loaded"),
    "tokenizer cut short": (_in("tokenizer.json", _writes('{"mod')), "tokenizer cannot be loaded"),
    "tokenizer config": (_in("tokenizer_config.json", truncate), "not readable as JSON"),
}


@pytest.mark.parametrize("case", BROKEN_MODELS)
def test_broken_models(refused: Refused, tmp_path: Path, case: str) -> None:
    """Whatever is wrong with a checkpoint folder is said before anything is written."""
    folder = write_checkpoint(tmp_path / "broken")
    edit, said = BROKEN_MODELS[case]
    edit(folder)
    message = refused(model=folder)
    assert said in message
    assert str(folder) in message or case in ("unknown type", "a layer more")


def test_a_vocabulary_cut_short_is_warned_of(
    call: Cli, tmp_path: Path, data: Path, checkpoint: Path
) -> None:
    """It still makes tokens, most of them unknown: no error, but not silence either."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "short"))
    truncate(folder / "vocab.txt")
    flags = ("--data", data, "--epochs", 1, "--set", "method.rank=2")
    answer = call("run", "--task", "mrpc", "--method", "lora", "--model", folder, *flags)
    assert answer.code == 0
    assert "is the vocabulary cut short?" in answer.err


def test_a_file_as_a_model(refused: Refused, checkpoint: Path) -> None:
    """A file is not a folder."""
    assert "is a file, not a folder" in refused(model=checkpoint / "config.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b", "the top level must be a mapping"),
        ("a: [", "not valid YAML"),
        ("model: !!python/object/apply:os.mkdir [left]", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("a: " + "[" * 3000, "not valid YAML"),
        ("train: &t {adam_eps: *t}", "more than 100000 values, or one inside itself"),
        ("train: {lerning_rate: 1}", "unknown key 'train.lerning_rate': did you mean 'learning_r"),
        ("trian: {}", "unknown key 'trian': did you mean 'train'?"),
        ("lerning: 1", "unknown key 'lerning'"),
        ("tasks: {mrcp: {}}", "unknown task 'mrcp': did you mean 'mrpc'?"),
        ("tasks: 3", "'tasks' must be a mapping"),
        ("tasks: {mrpc: 3}", "tasks.mrpc must be a mapping"),
        ("tasks: {mrpc: {seed: 3}}", "tasks.mrpc.seed cannot be set there"),
        ("methods: {lroa: {}}", "methods.lroa: no such method: did you mean 'lora'?"),
        ("methods: {lora: {method: bitfit}}", "methods.lora.method cannot be set there"),
        ("train: {adam_eps: yes}", "train.adam_eps = True: this must be a number"),
        ("train: {adam_eps: [1]}", "train.adam_eps = [1]: input should be a valid number"),
        ("train: {adam_eps: .nan}", "train.adam_eps = nan: input should be a finite number"),
    ],
)
def test_configuration_files(refused: Refused, tmp_path: Path, text: str, said: str) -> None:
    """The file is named, and the key or place in it."""
    (tmp_path / "mine.yaml").write_text(text)
    message = refused(config="mine.yaml")
    assert said in message
    assert "mine.yaml" in message


def test_configuration_files_that_cannot_be_read(refused: Refused, tmp_path: Path) -> None:
    """Missing, and a folder."""
    assert "no.yaml: no such file" in refused(config="no.yaml")
    (tmp_path / "folder").mkdir()
    assert "folder: cannot be read" in refused(config="folder")


@pytest.mark.parametrize("results", ["way", "way/deeper", "way/deeper/still"])
def test_results_that_cannot_be_written(refused: Refused, tmp_path: Path, results: str) -> None:
    """A file in the way is found before the first run, and named."""
    (tmp_path / "way").write_text("in the way")
    message = refused(results=results)
    assert f"--results {results}: cannot be written" in message
    assert (tmp_path / "way").read_text() == "in the way"


def test_commands_on_results_that_are_not_there(call: Cli, tmp_path: Path) -> None:
    """A missing and an empty folder are named, with a way to the first result."""
    (tmp_path / "empty").mkdir()
    for args in (("table",), ("list", "runs"), ("show", "x")):
        assert "results folder nowhere does not exist" in call(*args, "--results", "nowhere").error
    message = call("table", "--results", "empty").error
    assert "--results empty: no runs here" in message
    assert "--preset smoke" in message
    assert "no run 'x' in empty: it has no runs" in call("show", "x", "--results", "empty").error
    for odd in ("x" * 300, "~nobody-here", "a/b"):
        assert f"no run '{odd[:8]}" in call("show", odd, "--results", "empty").error
    assert not any((tmp_path / "empty").iterdir())


def test_unknown_names_elsewhere(call: Cli, checkpoint: Path) -> None:
    """Formats, listings, and more than one method in a plan."""
    assert "--format docx: choices: csv, " in call("table", "--format", "docx").error
    assert "--format jsno: did you mean 'json'?" in call("table", "--format", "jsno").error
    assert "cannot list 'rnus': did you mean 'runs'?" in call("list", "rnus").error
    for flags in (("--method", "all"), ("--method", "lora,full"), ("--task", "all")):
        message = call("plan", "--model", checkpoint, *flags).error
        assert "plan shows one method and one task at a time" in message
    message = call("plan", "--model", checkpoint, "--method", "spafit-5-9-i").error
    assert "valid layers are 0-1" in message


def test_the_hub_out_of_reach(call: Cli, cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    """Without network the ways out are named: for the model, for the data, and with --offline."""
    flags = ("run", "--task", "mrpc", "--method", "spafit")
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    unreachable = cli(*flags, HF_HUB_OFFLINE="0", **env).error
    assert "model 'bert-large-cased': the hub cannot be reached" in unreachable
    assert "Tried http://127.0.0.1:9" in unreachable
    no_data = call(*flags, "--model", checkpoint).error
    assert "dataset 'nyu-mll/glue': HF_HUB_OFFLINE is set" in no_data
    offline = call(*flags, "--model", "nobody/no-such-model", "--offline").error
    assert "model 'nobody/no-such-model': --offline is set" in offline
    for message in (unreachable, no_data, offline):
        for way in ("--data PATH", "--model PATH", "--preset smoke"):
            assert way in message
        assert len(message) < 600
    assert not (tmp_path / "results").exists()
