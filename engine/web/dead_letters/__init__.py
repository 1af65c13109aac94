"""Dead letters in the web view, and what people decide about them."""
