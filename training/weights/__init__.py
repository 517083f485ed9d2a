"""Weights of backbones from files, by name."""
