"""`python -m pipeline` is the console script `pipeline`."""

from pipeline.cli import main

main()
