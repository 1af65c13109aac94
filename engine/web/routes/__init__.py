"""The routes that every application has."""
