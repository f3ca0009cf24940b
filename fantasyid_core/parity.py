"""Where `python -m fantasyid_core.parity` has gone."""

raise SystemExit("This command is now: python -m fantasyid_lab.parity")
