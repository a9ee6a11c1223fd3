"""Adapters of the client to other libraries."""
