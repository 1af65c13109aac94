"""What happens now, as server-sent events: changes of declared tables and dead letters, and figures every second."""
