"""Histories that are written down: the races that were seen, and outages of known length."""
HISTORIES, DEFAULT = {}, []
