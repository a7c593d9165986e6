"""`python -m subspace_cli`: the command, for launchers that start a module."""

from . import main

main()
