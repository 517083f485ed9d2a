"""Identities split off a dataset for verification."""
