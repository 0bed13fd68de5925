"""Devices, number formats and files."""
