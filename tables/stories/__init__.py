"""The stories of orders: everything that was asked and that happened, as trees of what caused what."""
