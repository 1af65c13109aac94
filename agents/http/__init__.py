"""Routes that turn requests of clients into commands."""
