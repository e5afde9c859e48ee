"""Results as one self-contained HTML page: every table, figure and run.

Readable without a script and without a network: style, script and figures are inside, and the
page's content security policy forbids anything else. `page` puts it together.
"""

from spafit_bench.analysis.report.page import build_report

__all__ = ["build_report"]
