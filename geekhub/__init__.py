"""Wiring: settings, addresses, server, staff site. No business rule."""
