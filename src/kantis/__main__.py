"""Run Kantis as `python -m kantis`."""

from kantis.cli import main

main()
