"""Views: several photos or a video of one person → a small collection of face crops (paper, section 3.1)."""
