"""Files: reading weights without executing anything, the published layout, downloads."""
