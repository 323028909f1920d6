"""`python -m clipmole`: the command line, even if there is no script `clipmole` on the path."""

from clipmole.cli import main

if __name__ == "__main__":
    main()
