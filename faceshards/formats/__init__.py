"""File formats, read without trusting them."""
