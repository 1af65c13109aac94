"""The operator's page: its frame, dead letters, and what goes on; an application adds pages of its own."""
