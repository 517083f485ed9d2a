"""Filters: what may leave a set because of how a picture is, not because of what it shows."""
