"""HTTP commands: what clients ask of the system becomes commands in the log."""
