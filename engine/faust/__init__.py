"""The only folder that imports faust and mode."""
