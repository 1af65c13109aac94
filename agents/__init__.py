"""Services: one module each, with its agents and the state that they keep."""
