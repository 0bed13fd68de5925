"""Devices, number formats and files."""

from tltasks.runtime.files import locked, whole_file, whole_folder, write_json, write_text

__all__ = ["locked", "whole_file", "whole_folder", "write_json", "write_text"]
