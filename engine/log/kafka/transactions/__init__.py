"""Transactions of Kafka: their states, and those that hang."""
