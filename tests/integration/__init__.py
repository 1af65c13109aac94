"""Parts of the system together, on the transports they run on."""
