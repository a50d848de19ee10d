"""The command line: `main` and its exit codes. Importing it brings neither numpy nor torch."""

from clipguard.cli.entry import main

__all__ = ["main"]
