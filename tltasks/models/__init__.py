"""Checkpoints: loaded, adapted, saved."""

from tltasks.runtime.imports import fetch_no_kernels

fetch_no_kernels()
