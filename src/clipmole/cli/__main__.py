"""`python -m clipmole.cli`, as `python -m clipmole`: `accelerate launch -m clipmole.cli` starts it several times."""

from clipmole.cli import main

if __name__ == "__main__":
    main()
