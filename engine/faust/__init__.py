"""The application, agents, transports and web server of Faust; no other folder imports faust or mode."""
