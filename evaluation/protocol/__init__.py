"""The field's verification numbers and their intervals."""
