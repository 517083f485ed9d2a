"""MindRecord shards, written and read without MindSpore."""
