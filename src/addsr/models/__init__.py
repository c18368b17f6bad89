"""Model files: what exists, where it comes from and how it is stored."""
