"""The whole system as its users see it: processes, commands, HTTP."""
