"""Which records are the same photograph."""
