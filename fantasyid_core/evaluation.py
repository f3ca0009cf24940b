"""Where `python -m fantasyid_core.evaluation` has gone."""

raise SystemExit("This command is now: python -m fantasyid_lab.evaluation")
