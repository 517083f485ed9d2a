"""The field's verification numbers: sets, embeddings, verification, report."""
