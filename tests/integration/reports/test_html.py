"""What drawing a report costs and leaves behind, in a process of its own."""

import subprocess
import sys
from pathlib import Path


def test_no_torch_no_pyplot_and_no_changed_settings() -> None:
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from tltasks.reports import charts, html\n"
        "charts.draw_loss([(1, 2.0), (2, 1.0)], [(2, 1.5)], None)\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "print(sorted({'torch', 'matplotlib.pyplot', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"


def test_what_a_terminal_shows_needs_no_figures() -> None:
    code = "import sys, tltasks.reports; print(sorted({'matplotlib', 'torch', 'pandas'} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"
