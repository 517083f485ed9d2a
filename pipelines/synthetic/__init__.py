"""The embedded set of invented faces, with known defects."""
