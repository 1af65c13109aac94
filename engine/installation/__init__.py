"""The application and the installation that own the topics of a log, written down in the log itself."""
