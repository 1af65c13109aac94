"""Read models: tables, and the routes that show them."""
