"""The old address of `load_run`, which model cards already written name."""

from spafit_bench.export.restore import load_run

__all__ = ["load_run"]
