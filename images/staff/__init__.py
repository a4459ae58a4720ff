"""Requests and organizations for staff."""
