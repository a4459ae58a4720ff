"""Leaf helpers: they import no app and know no business rule."""
