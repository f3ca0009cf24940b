"""Sampling: the released schedule, and windows for videos longer than the model was trained on."""
