"""Topics, commands and events of the shop, its settings, and its adapters for mail and payment; app.py composes it."""
