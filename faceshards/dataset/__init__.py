"""A published dataset: its tables, how it is opened, and how it is checked."""
