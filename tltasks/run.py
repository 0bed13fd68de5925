"""Run one recipe: `accelerate launch tltasks/run.py --recipe recipes/vit_cifar10.yaml`.

Also `python -m tltasks.run`, `torchrun tltasks/run.py` and `tltasks run RECIPE`. A script, never to be imported: in
Python `tltasks.run` is the function.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Launched by path, Python puts this file's folder first on the search path: `import tltasks` then fails where the
# package is not installed, and the modules beside this file would shadow libraries of the same name.
_HERE = Path(__file__).resolve().parent
if __name__ == "__main__" and sys.path and Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from tltasks.cli.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
