"""Tracing with OpenTelemetry; off unless the standard environment variables ask for it.

environment.py reads these. current.py is what other code asks: it never imports OpenTelemetry. sdk.py makes the spans,
records.py those of records and commits, requests.py those of HTTP requests.
"""
