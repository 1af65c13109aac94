"""The web page at `/`: hand-written HTML, CSS and ES modules in `assets`, served as they are."""
