"""What was measured, as a table, JSON and a page."""
