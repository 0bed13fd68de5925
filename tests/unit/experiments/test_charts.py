import pytest

from tltasks.experiments.charts import draw_progress


@pytest.mark.parametrize(("state", "named"), [("finished", False), ("pruned", True)])
def test_a_legend_of_trials_names_only_what_is_drawn(state: str, named: bool) -> None:
    figure = draw_progress([(0, 0.1, "finished"), (1, 0.2, state)], "accuracy", higher_is_better=True)
    names = figure.axes[0].get_legend_handles_labels()[1]
    assert ("ended early" in names) == named
    assert {"finished", "best so far"} <= set(names)
