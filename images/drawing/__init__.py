"""The way of one request, in order: routing, admit, story (draw, keep, charge), or abandoned."""
