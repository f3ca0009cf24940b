"""Fusion: face views and a mesh → the ID descriptor (paper, section 3.2)."""
