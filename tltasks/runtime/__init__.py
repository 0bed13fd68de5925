"""Devices, number formats, files, and what is said of progress."""
