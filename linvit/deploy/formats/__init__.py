"""The formats to export to: one file for each, named like the format."""
