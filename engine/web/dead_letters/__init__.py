"""Dead letters in the web view, and decisions about them."""
