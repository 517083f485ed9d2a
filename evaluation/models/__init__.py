"""Models to embed with, in and out."""
