"""AP, HOTA and identity of results over annotated videos, and their reports."""
