"""Commands and events of the shop, as they are on the wire."""
