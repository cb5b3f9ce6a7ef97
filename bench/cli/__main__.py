"""Run the command line with `python -m bench.cli`."""

from . import main

main()
