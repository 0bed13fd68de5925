"""Recipes as pure data: read, checked and planned without torch."""
