"""What an installed package carries, from a wheel and from a checkout."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from spafit_bench.base.yaml_files import config_folder
from tests.conftest import REPOSITORY, clean_environment

PROBE = """
import spafit_bench
from spafit_bench.config.run_config import load_sources, preset_names
from spafit_bench.data.load import load_task_data, official_fingerprints
from spafit_bench.data.tasks import get_task
from spafit_bench.methods.method import get_method, method_names
from spafit_bench.base.yaml_files import config_folder
layers = load_sources(preset="smoke", config=None, assignments=(), flags={})
assert layers[0].body["train"]["epochs"], layers
assert load_task_data(get_task("mnli"), "mini").splits["ax"].num_rows == 250
print(spafit_bench.__file__)
print(config_folder())
print(*preset_names())
print(*[get_method(name).name for name in method_names()])
print(len(official_fingerprints()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the repository, unpacked."""
    for needed in ("setuptools", "pip"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not in this environment, so no wheel can be built")
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for name in ("spafit_bench", "configs"):
        copytree(REPOSITORY / name, source / name, ignore=ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--quiet", "--disable-pip-version-check", "--no-index"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(root), str(source)],
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=root,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(root.glob("*.whl"))) as archive:
        archive.extractall(root / "unpacked")
    return root / "unpacked"


def probe(path: Path, cwd: Path) -> list[str]:
    """Ask a package at `path` what it finds, from a folder elsewhere."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=clean_environment(PYTHONPATH=str(path)),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_checkout_finds_its_configurations(tmp_path: Path) -> None:
    """As an editable install does, wherever it is called from."""
    assert config_folder() == REPOSITORY / "configs"
    assert probe(REPOSITORY, tmp_path)[1] == str(REPOSITORY / "configs")


def test_a_wheel_carries_everything(wheel: Path) -> None:
    """Every configuration, the fingerprints, the types' marker; and no tests."""
    inside = wheel / "spafit_bench"
    expected = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert len(expected) > 7
    found = {path.relative_to(inside) for path in (inside / "configs").rglob("*.yaml")}
    assert found == expected
    package = REPOSITORY / "spafit_bench"
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts and path.suffix != ".c"}
    assert {path.relative_to(inside) for path in inside.rglob("*") if path.is_file()} >= files
    assert (inside / "data" / "official.json").is_file()
    assert (inside / "py.typed").is_file()
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {
        "spafit_bench"
    }


def test_a_wheel_finds_its_configurations(wheel: Path, tmp_path: Path) -> None:
    """The same presets and methods as the checkout, from inside the package."""
    from_wheel, from_checkout = probe(wheel, tmp_path), probe(REPOSITORY, tmp_path)
    assert from_wheel[0].startswith(str(wheel))
    assert from_wheel[1] == str(wheel / "spafit_bench" / "configs")
    assert from_wheel[2:] == from_checkout[2:]


def test_a_wheel_trains(wheel: Path, tmp_path: Path) -> None:
    """Outside the checkout, from the wheel alone: tiny BERT, mini-GLUE, configurations."""
    shortest = ["--limit", "16", "--epochs", "1", "--warmup", "0", "--no-predict-test"]
    command = [sys.executable, "-m", "spafit_bench", "run", "--task", "mrpc", "--method", "spafit"]
    done = subprocess.run(
        [*command, "--preset", "smoke", *shortest],
        env=clean_environment(PYTHONPATH=str(wheel)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "results" / "runs").glob("mrpc-spafit-tiny-bert-s0-*/record.json"))


def test_the_wheel_has_a_command(wheel: Path) -> None:
    """`spafit-bench` is `spafit_bench.cli:main`."""
    entry = next(wheel.glob("*.dist-info")) / "entry_points.txt"
    assert "spafit-bench = spafit_bench.cli:main" in entry.read_text()
