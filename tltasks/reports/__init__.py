"""Renderings of results: model card, report, terminal."""
