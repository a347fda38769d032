"""Formats of annotated sets that have a reader of their own."""
