"""The audit: rows are held against the events they come from, by rules of its own."""
