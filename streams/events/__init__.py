"""Events and commands: the words that services exchange, and how they look on the wire."""
