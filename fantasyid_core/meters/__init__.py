"""Meters: who is in a video, and how the face and the head move."""
