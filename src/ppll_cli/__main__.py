"""`python -m ppll_cli` is `ppll-run`."""

from ppll_cli.cli.app import main

if __name__ == "__main__":
    main()
