"""The orders job as users of the peers write it; see README.md."""
