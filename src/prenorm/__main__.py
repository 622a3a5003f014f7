"""`python -m prenorm` is `prenorm`."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
