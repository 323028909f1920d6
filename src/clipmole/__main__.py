"""`python -m clipmole`: the command line, also where no script `clipmole` is on the path."""

from clipmole.cli import main

if __name__ == "__main__":
    main()
