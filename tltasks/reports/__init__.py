"""Renderings of results: model card, report, terminal.

`html` draws with matplotlib and `model_card` needs the Hub's client, so that they are imported from their modules.
"""

from tltasks.reports.console import show_checks, show_plan, show_result

__all__ = ["show_checks", "show_plan", "show_result"]
