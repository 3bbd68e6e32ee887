"""Runs the recsys command from a checkout: `python cli.py train --help`."""

from recsys.cli import main

main()
