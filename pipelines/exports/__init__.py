"""Exports: a published dataset written in the formats of others, original bytes and all."""
