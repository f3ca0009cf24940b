"""The lab: synthetic people, training, evaluation and parity. Made FantasyID-nano; no node needs it."""
