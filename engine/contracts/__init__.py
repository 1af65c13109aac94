"""The published contracts, made from the code's own models: HTTP (OpenAPI) and topics (AsyncAPI)."""
