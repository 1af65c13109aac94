"""Exactly-once streams on Faust: aggregates, projections, ordered dead letters, rebuilds, and a web view."""
