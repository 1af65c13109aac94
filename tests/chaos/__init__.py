"""Kills and freezes: load while faults happen, and a verifier that counts afterwards."""
