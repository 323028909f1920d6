"""`python -m clipmole.cli`: the same as `python -m clipmole`, for `accelerate launch -m clipmole.cli`."""

from clipmole.cli import main

if __name__ == "__main__":
    main()
