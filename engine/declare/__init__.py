"""What an application declares: topics, tables, messages, services, settings."""
