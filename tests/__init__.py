"""Everything that proves the system right."""
