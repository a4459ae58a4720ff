"""The frame of the staff site; each app registers its own lists in it."""
