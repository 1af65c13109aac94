"""The audit: rows held against the events they come from, by rules of its own."""
