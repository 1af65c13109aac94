"""Declarations of an application: its names, settings, topics, messages, tables, agents and services."""
