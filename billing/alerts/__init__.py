"""Alerts: which are due, and their way to people and endpoints."""
