"""What happens now, as server-sent events: changes of orders, sagas and dead letters, and figures once a second."""
