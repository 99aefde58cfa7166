"""`python -m alignkit` is `alignkit`."""

from alignkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
