"""The command line from a checkout: `python cli.py`. It is not installed; `distill` is."""

from __future__ import annotations

from distill.commands.main import main

if __name__ == "__main__":
    main()
