"""Annotated sets in several formats: reading, checking, converting, drawing."""
