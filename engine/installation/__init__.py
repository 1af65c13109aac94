"""Which application and installation own the topics of a log, written down in the log itself."""
