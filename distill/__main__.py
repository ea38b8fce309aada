"""`python -m distill`, and `torchrun -m distill` for several processes."""

from __future__ import annotations

from distill.commands.main import main

if __name__ == "__main__":
    main(prog_name="distill")
