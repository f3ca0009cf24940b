"""Evaluation: who is in a video, how the face moves, and whether it does what the prompt says."""
