"""Where `python -m fantasyid_core.people` has gone."""

raise SystemExit("This command is now: python -m fantasyid_lab.people")
