"""What all routes of the web view share."""
