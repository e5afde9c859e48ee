"""torch and transformers, imported in two thirds of their usual time.

A plain import does the same and needs nothing from here. Seconds on one core with torch 2.13 and
transformers 5.23, 3.3 in all: 0.6 go into looking for garbage among a million new objects, of which
none is; 0.25 into reading every file of `transformers.models` a second time; 0.25 into scipy's
optimisers for losses of object detection.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load_libraries() -> None:
    """Import what every run needs, unless it is there already."""
    if "transformers" in sys.modules:
        return
    with _without_collection():
        import torch  # noqa: F401
        from transformers.utils import import_utils

        _hide_scipy(import_utils)
        with _scanned_once(import_utils):
            import transformers.models
        import transformers.modeling_utils  # noqa: F401


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector from what is made here, now and later: it stays for good."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _hide_scipy(import_utils: Any) -> None:
    """Let transformers answer once and for all that it has no scipy."""
    found = getattr(import_utils, "_is_package_available", None)
    asked: Any = getattr(import_utils, "is_scipy_available", None)
    if found is None or not hasattr(asked, "cache_clear"):  # another version works otherwise
        return
    import_utils._is_package_available = lambda *_, **__: (False, "N/A")
    try:
        asked.cache_clear()
        asked()
    finally:
        import_utils._is_package_available = found


@contextmanager
def _scanned_once(import_utils: Any) -> Iterator[None]:
    """Let `transformers.models` have the list of files that `transformers` has just made.

    Both ask for it under different names of one folder, and the function remembers names.
    """
    name = "create_import_structure_from_path"
    scan: Callable[[Path], Any] | None = getattr(import_utils, name, None)
    if scan is None:
        yield
        return

    def scan_folder(path: str) -> Any:
        return scan(Path(path).parent if Path(path).is_file() else Path(path))

    setattr(import_utils, name, scan_folder)
    try:
        yield
    finally:
        setattr(import_utils, name, scan)
