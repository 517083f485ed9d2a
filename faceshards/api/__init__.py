"""What Python programs use, and notebooks: open a dataset, build one, stream its batches (docs/api.md)."""
