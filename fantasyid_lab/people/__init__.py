"""Synthetic people: identities, clips and captions by seed, rendered in batches on any device. See docs/people.md."""
