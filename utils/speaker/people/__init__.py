"""Enrolled people: the store, and commands that recognize them."""
