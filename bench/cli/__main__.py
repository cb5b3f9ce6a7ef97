"""`python -m bench.cli`: the same as `bench`."""

from . import main

main()
