"""Arrays kept on disk: the same again, damage noticed, bounded, and shared by many processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from spafit_bench.base.errors import UserError
from spafit_bench.training.array_cache import ArrayCache, Arrays, Streamed, user_cache
from tests.conftest import clean_environment


def some_arrays(seed: int = 0, size: int = 50) -> Arrays:
    """Arrays of several types, one of them empty and one without dimensions."""
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 30_000, size).astype(np.int32),
        "odd": rng.integers(0, 2, 7).astype(np.uint8),
        "table": rng.normal(size=(5, 3)),
        "none": np.zeros((0, 4), dtype=np.float32),
        "number": np.asarray(7),
    }


def assert_equal(found: Arrays | None, expected: Arrays) -> None:
    """Compare names, types, shapes and values."""
    assert found is not None
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    """A cache that holds a few entries."""
    return ArrayCache(tmp_path / "cache", max_bytes=10_000)


def test_what_is_kept_comes_back(cache: ArrayCache) -> None:
    """Names, types, shapes and values; read-only; nothing under another key."""
    cache.save("a", some_arrays())
    found = cache.load("a")
    assert_equal(found, some_arrays())
    assert found is not None
    assert not found["ids"].flags.writeable
    assert cache.load("b") is None


def test_an_array_may_come_in_pieces(cache: ArrayCache) -> None:
    """It is the same entry, beside arrays that are there whole."""
    whole = some_arrays()
    chunks = (whole["ids"][at : at + 7] for at in range(0, 50, 7))
    cache.save("a", whole | {"ids": Streamed(whole["ids"].dtype, whole["ids"].shape, chunks)})
    assert_equal(cache.load("a"), whole)
    streamed = (cache.folder / "a.arrays").read_bytes()
    cache.save("a", whole)
    assert (cache.folder / "a.arrays").read_bytes() == streamed


def test_what_breaks_off_leaves_nothing(cache: ArrayCache) -> None:
    """Where the pieces end with an error, it is the caller's, and no file stays."""

    def chunks() -> Iterator[np.ndarray]:
        yield np.zeros(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.save("a", {"x": Streamed(np.dtype(float), (10,), chunks())})
    assert list(cache.folder.iterdir()) == []


def test_the_bound_counts_what_others_write(cache: ArrayCache) -> None:
    """Room that another process has taken for an entry it has not finished is not given twice."""
    small, names = some_arrays(size=10), []

    def chunks() -> Iterator[np.ndarray]:
        cache.save("small", small)
        cache.save("too large now", some_arrays(size=500))
        names.extend(path.stem for path in cache.folder.glob("*.arrays"))
        yield np.zeros(1_000)

    cache.save("a", {"x": Streamed(np.dtype(float), (1_000,), chunks())})
    assert names == ["small"]
    assert cache.load("a") is not None


def flip(content: bytes, at: int) -> bytes:
    """Change one bit."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "cut to a few bytes": lambda content: content[:20],
    "cut in half": lambda content: content[: len(content) // 2],
    "last byte lost": lambda content: content[:-1],
    "grown": lambda content: content + b"\0",
    "length of the header": lambda content: flip(content, 0),
    "header": lambda content: flip(content, 30),
    "value": lambda content: flip(content, len(content) // 2),
    "checksum": lambda content: flip(content, len(content) - 1),
    "random bytes": lambda content: np.random.default_rng(0).bytes(len(content)),
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(
    cache: ArrayCache, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """The entry is set aside with a warning, counts as missing, and can be made anew."""
    cache.save("a", some_arrays())
    (entry,) = cache.folder.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cache.load("a") is None
    assert "set aside" in caplog.text
    assert [path.name for path in cache.folder.iterdir()] == ["a.damaged"]
    cache.save("a", some_arrays())
    assert_equal(cache.load("a"), some_arrays())


def test_an_entry_knows_its_key(cache: ArrayCache) -> None:
    """A file that was given another name is not taken for what the name says."""
    cache.save("a", some_arrays())
    (entry,) = cache.folder.iterdir()
    entry.rename(cache.folder / "b.arrays")
    assert cache.load("b") is None


def test_used_longest_ago_goes_first(cache: ArrayCache) -> None:
    """The bytes on disk stay below the bound; reading counts as use; other files are not ours."""
    cache.folder.mkdir()
    (cache.folder / "notes.txt").write_text("mine" * 5_000)
    for number in range(3):
        cache.save(f"old-{number}", some_arrays(number, size=500))
        entry = cache.folder / f"old-{number}.arrays"
        os.utime(entry, (1_000 + number, 1_000 + number))
    assert cache.load("old-0") is not None
    cache.save("new", some_arrays(size=500))
    names = {path.stem for path in cache.folder.glob("*.arrays")}
    assert names == {"old-0", "old-2", "new"}
    assert sum(path.stat().st_size for path in cache.folder.glob("*.arrays")) <= cache.max_bytes
    assert (cache.folder / "notes.txt").exists()


def test_what_does_not_fit_is_not_kept(cache: ArrayCache) -> None:
    """Nor does it drive everything else out."""
    cache.save("small", some_arrays())
    cache.save("large", some_arrays(size=5_000))
    assert cache.load("large") is None
    assert cache.load("small") is not None


def test_leavings_of_killed_processes_go(cache: ArrayCache) -> None:
    """An unfinished file is left alone while somebody may be writing it."""
    cache.folder.mkdir()
    for name, age_s in (("young", 60), ("abandoned", 100_000)):
        path = cache.folder / f"{name}.unfinished"
        path.write_bytes(b"x" * 100)
        os.utime(path, (time.time() - age_s,) * 2)
    cache.save("a", some_arrays())
    assert {path.name for path in cache.folder.iterdir()} == {"young.unfinished", "a.arrays"}


def test_nothing_stops_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the folder cannot be used, the cache is empty and says why."""
    (tmp_path / "file").write_text("in the way")
    cache = ArrayCache(tmp_path / "file" / "cache", max_bytes=10_000)
    with caplog.at_level(logging.WARNING):
        cache.save("a", some_arrays())
        assert cache.load("a") is None
    assert "nothing can be kept" in caplog.text


CROWD = """
import sys
from pathlib import Path
from spafit_bench.training.array_cache import ArrayCache
from tests.training.test_array_cache import assert_equal, some_arrays

cache = ArrayCache(Path(sys.argv[1]), max_bytes=10_000)  # three of the five entries fit
found = 0
for turn in range(60):
    seed = (turn // 2 * int(sys.argv[2])) % 5  # each twice: the second time it may be there
    kept = cache.load(f"entry-{seed}")
    if kept is not None:
        assert_equal(kept, some_arrays(seed, size=500))
        found += 1
    else:
        cache.save(f"entry-{seed}", some_arrays(seed, size=500))
print(found)
"""


def test_many_processes_at_once(cache: ArrayCache) -> None:
    """All read whole entries or none while the others write and remove them."""
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(cache.folder), str(step)],
            env=clean_environment(PYTHONPATH=os.pathsep.join(("..", *sys.path))),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for step in (1, 2, 3)
    ]
    answers = [(*process.communicate(timeout=60), process.returncode) for process in crowd]
    assert [(errors, code) for _, errors, code in answers] == [("", 0)] * 3
    assert all(int(found) > 0 for found, _, _ in answers)
    assert {path.suffix for path in cache.folder.iterdir()} == {".arrays"}


def _as_user(uid: int, work: Callable[[], None]) -> int:
    """Do some work as another member of group 4321, with umask 002; return the exit code."""

    def child() -> None:
        os.setgroups([])
        os.setgid(4321)
        os.setuid(uid)
        os.umask(0o002)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    return process.exitcode if process.exitcode is not None else -1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_group_shares_a_cache(caplog: pytest.LogCaptureFixture) -> None:
    """What one user keeps, another reads, refreshes, locks and makes room of, without a warning."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o711)
        shared = root / "shared"
        shared.mkdir()
        os.chown(shared, 0, 4321)
        shared.chmod(0o2770)
        cache = ArrayCache(shared / "tokens", max_bytes=10_000)

        def first() -> None:
            for number in range(3):
                cache.save(f"a{number}", some_arrays(number, size=500))
            with cache.alone("a0"):
                pass

        def second() -> None:
            with caplog.at_level(logging.DEBUG, "spafit_bench"):
                with cache.alone("a0"):
                    assert_equal(cache.load("a0"), some_arrays(0, size=500))
                cache.save("b", some_arrays(4, size=500))  # which only fits instead of another
                assert cache.load("b") is not None
            assert not [r for r in caplog.records if r.name.startswith("spafit_bench")]

        assert _as_user(4001, first) == 0
        for path in cache.folder.iterdir():
            os.utime(path, (1_000, 1_000))
        assert _as_user(4002, second) == 0
        assert (cache.folder / "a0.arrays").stat().st_mtime > 1_000
        assert len(list(cache.folder.glob("*.arrays"))) == 3


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own variable first, then XDG_CACHE_HOME if absolute, then ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = {
        ("own", "/shared"): Path("own/tokens"),
        ("", "/shared"): Path("/shared/spafit-bench/tokens"),
        ("", "relative"): tmp_path / "home/.cache/spafit-bench/tokens",
        ("", ""): tmp_path / "home/.cache/spafit-bench/tokens",
    }
    for (own, shared), folder in expected.items():
        monkeypatch.setenv("SPAFIT_BENCH_CACHE_DIR", own)
        monkeypatch.setenv("XDG_CACHE_HOME", shared)
        cache = user_cache("tokens")
        assert cache is not None
        assert cache.folder == folder


@pytest.mark.parametrize(("text", "max_bytes"), [("", 4_000_000_000), ("0.5", 500_000_000)])
def test_the_bound_is_the_users(monkeypatch: pytest.MonkeyPatch, text: str, max_bytes: int) -> None:
    """In gigabytes; unset or empty means the default."""
    monkeypatch.setenv("SPAFIT_BENCH_CACHE_GB", text)
    cache = user_cache("tokens")
    assert cache is not None
    assert cache.max_bytes == max_bytes


def test_no_room_means_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound of 0 switches it off."""
    monkeypatch.setenv("SPAFIT_BENCH_CACHE_GB", "0")
    assert user_cache("tokens") is None


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_bound_is_a_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The message names the variable."""
    monkeypatch.setenv("SPAFIT_BENCH_CACHE_GB", text)
    with pytest.raises(UserError, match="SPAFIT_BENCH_CACHE_GB"):
        user_cache("tokens")
