"""What makes the tables of docs/: one module a page."""
