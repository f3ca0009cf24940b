"""Commands that try to break the pack: what they ran and found stands in docs/reliability.md."""
