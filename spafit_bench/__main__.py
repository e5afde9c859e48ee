"""`python -m spafit_bench` is the command line."""

from spafit_bench.cli import main

main()
