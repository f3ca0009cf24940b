"""The field's own benchmarks as commands: numbers that stand beside published tables."""
