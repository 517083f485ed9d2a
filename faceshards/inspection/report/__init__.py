"""A dataset as one page that needs nothing else: its figures, and pictures of what a build decided about."""
