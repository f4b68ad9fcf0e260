"""Plugins: what they are, which hooks they fill, and how they are found and selected."""
