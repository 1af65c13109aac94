"""Records that fail: retries, lanes of waiting records, dead letters, and decisions about them."""
