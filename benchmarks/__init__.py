"""`python -m benchmarks`: CogVideoX, ConsisID, FantasyID as released and ours in every mode, in one run on one card."""
