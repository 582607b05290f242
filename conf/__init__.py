"""The configuration groups of ppll-run, as `ppll_cli.conf` in an installed package."""
