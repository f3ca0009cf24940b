"""Where `python -m fantasyid_lab.training.ceilings` has gone."""

raise SystemExit("This command is now: python -m fantasyid_lab.training.oracle_bounds")
