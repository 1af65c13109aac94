"""The examples, tested like the shop."""
