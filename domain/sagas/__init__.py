"""The saga of an order: its state, the steps it is defined by, and the machine that runs them."""
