"""Where `python -m fantasyid_core.training` has gone."""

raise SystemExit("This command is now: python -m fantasyid_lab.training")
