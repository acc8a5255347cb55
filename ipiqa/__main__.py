"""`python -m ipiqa`: the command line where the script `ipiqa` is not on the path."""

from ipiqa.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
