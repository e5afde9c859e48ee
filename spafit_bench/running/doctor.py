"""Checks whether this machine can run benchmarks, and says what to fix."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spafit_bench.base.units import human_bytes

Verdict = Literal["ok", "note", "broken"]

PYTHON = (3, 11)
HUB_TIMEOUT_S = 4.0
_LITTLE_DISK = 2 * 10**9
"""A checkpoint of BERT-large takes 1.3 GB: 333.6 million parameters in fp32."""
_FULL_LARGE = 16 * 333_581_314
"""Bytes of full fine-tuning of BERT-large without activations: weights, gradients, two moments."""
_EXTRAS = {"ray": "sweep --executor ray", "tensorboard": "--log tensorboard"}


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    verdict: Verdict
    """`broken`: no run can work. `note`: some runs cannot."""
    found: str
    fix: str = ""


def examine_machine(results: Path, *, offline: bool) -> list[Check]:
    """Check everything that a run needs.

    Args:
        results: the results folder.
        offline: do not ask the hub.
    """
    looks: dict[str, Callable[[], Check | list[Check]]] = {
        "python": _python,
        "packages": _packages,
        "torch": _torch,
        "memory": _memory,
        "results": lambda: _folder("results", results.absolute(), "broken", "--results DIR"),
        "cache": _cache,
        "hub": lambda: _hub(offline=offline),
        "extras": _extras,
    }
    checks: list[Check] = []
    for name, look in looks.items():
        try:
            found = look()
        except Exception as error:  # a check that fails is a finding, whatever broke
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            found = Check(name, "broken", reason, "install the package in a new environment")
        checks += found if isinstance(found, list) else [found]
    return checks


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        return Check("python", "broken", version, "use Python 3.11 or later")
    return Check("python", "ok", f"{version}, {sys.executable}")


def _packages() -> Check:
    """Compare the installed packages with the requirements."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in importlib.metadata.requires("spafit-bench") or ()]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Check("packages", "broken", "; ".join(wrong), "install spafit-bench again")
    return Check("packages", "ok", f"all {len(needed)} are installed")


def _torch() -> list[Check]:
    """Compute a product on the device of a run."""
    import torch

    from spafit_bench.models.numerics import choose_numerics, device_name, has_bf16_instructions

    numerics = choose_numerics("auto", "auto")
    square = torch.eye(8, device=numerics.device, dtype=numerics.dtype)
    if not torch.equal(square @ square, square):
        return [Check("torch", "broken", f"{torch.__version__} multiplies wrongly", "reinstall it")]
    device = f"{numerics.device}, {device_name(numerics.device)}"
    checks = [
        Check("torch", "ok", torch.__version__),
        Check("device", "ok", device)
        if numerics.device.type == "cuda"
        else Check("device", "note", device, "BERT-large needs a CUDA GPU; small models do not"),
        Check("precision", "ok", f"{numerics.precision} (--precision auto)"),
    ]
    if has_bf16_instructions():
        checks.append(_kernels())
    threads, most = torch.get_num_threads(), cores()
    found = f"{threads} on {most} core(s)"
    if threads > most:
        checks.append(Check("threads", "note", found, f"set OMP_NUM_THREADS={most}"))
    else:
        checks.append(Check("threads", "ok", found))
    return checks


def _kernels() -> Check:
    """Check whether the fast engine's kernels for this processor were compiled."""
    import torch

    from spafit_bench.models.fused import why_not_native
    from spafit_bench.models.numerics import Numerics

    reason = why_not_native(Numerics(torch.device("cpu"), "bf16"))
    if reason is None:
        return Check("kernels", "ok", "compiled, for bf16 on this processor")
    fix = 'training is a sixth faster with them: "Compiled kernels" in docs/speed.md'
    return Check("kernels", "note", reason, fix)


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> Check:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return Check(
            "memory",
            "note",
            "could not be read on this system",
            "check the available memory yourself",
        )
    sizes = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    free = sizes["MemAvailable"]
    found = f"{human_bytes(free)} available of {human_bytes(sizes['MemTotal'])}"
    if free < _FULL_LARGE:
        need = human_bytes(_FULL_LARGE)
        return Check("memory", "note", found, f"--method full of BERT-large takes {need} and more")
    return Check("memory", "ok", found)


def _folder(name: str, folder: Path, if_not: Verdict, way_out: str) -> Check:
    """Check whether a folder, or the one in which it would be made, can be written."""
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        found = f"{folder}: cannot be written ({error.strerror})"
        return Check(name, if_not, found, f"make it writable, or choose another with {way_out}")
    free = shutil.disk_usage(there).free
    found = f"{folder}: writable, {human_bytes(free)} free"
    if free < _LITTLE_DISK:
        return Check(
            name, "note", found, f"free some space, or choose another folder with {way_out}"
        )
    return Check(name, "ok", found)


def _cache() -> list[Check]:
    from huggingface_hub import constants

    from spafit_bench.training.array_cache import FOLDER_VARIABLE, user_folder

    hub = _folder("hub cache", Path(constants.HF_HUB_CACHE), "note", "HF_HOME")
    folder = user_folder()
    if folder is None:
        return [Check("cache", "note", "no home folder", f"set {FOLDER_VARIABLE}"), hub]
    return [_folder("cache", folder, "note", FOLDER_VARIABLE), hub]


def _hub(*, offline: bool) -> Check:
    from huggingface_hub import constants

    from spafit_bench.base.hub import why_unreachable
    from spafit_bench.data.layouts import HUB_REPO

    if offline:
        return Check("hub", "ok", "not asked (--offline)")
    reason = why_unreachable(HUB_REPO, "dataset", timeout_s=HUB_TIMEOUT_S)
    if reason is None:
        return Check("hub", "ok", f"{constants.ENDPOINT} answers")
    return Check(
        "hub",
        "note",
        f"{constants.ENDPOINT}: {reason}",
        "without the hub, use --data PATH, --model PATH, or --preset smoke",
    )


def _extras() -> list[Check]:
    checks = []
    for package, use in _EXTRAS.items():
        try:
            version = importlib.metadata.version(package)
            checks.append(Check(package, "ok", f"{version}, for {use}"))
        except importlib.metadata.PackageNotFoundError:
            fix = f"for {use}: pip install '.[{package}]' in a checkout"
            checks.append(Check(package, "note", "not installed", fix))
    return checks
