"""The configuration groups of ppll-run. An installed package contains them as `ppll_cli.conf`."""
