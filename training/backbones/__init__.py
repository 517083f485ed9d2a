"""The backbones of the field in MindSpore, one architecture per file."""
