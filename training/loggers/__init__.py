"""Places beside metrics.jsonl that are told what a run measures."""
