"""`python -m clipmole.cli`, for launchers that start a module in several processes."""

from clipmole.cli import main

main()
