"""Makes `python -m ppll_cli` do the same as the command `ppll-run`."""

from ppll_cli.cli.app import main

if __name__ == "__main__":
    main()
