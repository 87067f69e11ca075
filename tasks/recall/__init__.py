"""Associative recall, posed in all four patterns."""
