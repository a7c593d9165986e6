"""`python -m subspace_tuning.cli`, for launchers that start a module, such as `torchrun -m`."""

from . import main

main()
