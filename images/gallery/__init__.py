"""Delivered pictures: found, downloaded, checked, deleted."""
