"""Margins, one a file."""
