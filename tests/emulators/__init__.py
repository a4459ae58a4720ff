"""Emulators of the four image providers, as strict and as nasty as the real ones."""
