"""Streams shards into a MindSpore backbone with a Partial FC head: stream, backbone, margin, step, checkpoint."""
