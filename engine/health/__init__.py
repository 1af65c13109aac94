"""What stands still, is missing or damaged, and the doctor who looks for it."""
