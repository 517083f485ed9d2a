"""The command faceshards: one file per command."""
