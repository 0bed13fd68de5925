"""Experiments: which source, method or checkpoint transfers, and how sure that is; searches of a recipe's settings.

Names are imported when they are first used: experiments and searches are checked before anything heavy is.
"""

from typing import TYPE_CHECKING

from tltasks import lazily

if TYPE_CHECKING:
    from tltasks.experiments.comparison import ComparisonResult, ExperimentPlan, compare, plan_experiment
    from tltasks.experiments.execution import Workers
    from tltasks.experiments.experiment import Experiment, load_experiment
    from tltasks.experiments.lr_finder import LearningRateRange, find_learning_rate
    from tltasks.experiments.ranking import RankingResult, rank
    from tltasks.experiments.search_space import Search, load_search
    from tltasks.experiments.tuning import SearchResult, tune

__all__ = [
    "ComparisonResult",
    "Experiment",
    "ExperimentPlan",
    "LearningRateRange",
    "RankingResult",
    "Search",
    "SearchResult",
    "Workers",
    "compare",
    "find_learning_rate",
    "load_experiment",
    "load_search",
    "plan_experiment",
    "rank",
    "tune",
]

_MODULES = {
    "comparison": ("ComparisonResult", "ExperimentPlan", "compare", "plan_experiment"),
    "execution": ("Workers",),
    "experiment": ("Experiment", "load_experiment"),
    "lr_finder": ("LearningRateRange", "find_learning_rate"),
    "ranking": ("RankingResult", "rank"),
    "search_space": ("Search", "load_search"),
    "tuning": ("SearchResult", "tune"),
}

__getattr__ = lazily(__name__, {name: module for module, names in _MODULES.items() for name in names})
