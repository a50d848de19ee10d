"""The making of the embedded guide: see README.md."""
