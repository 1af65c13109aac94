"""One contract for all transports, with Kafka's behaviour as the reference."""
