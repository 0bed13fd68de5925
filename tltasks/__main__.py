"""`python -m tltasks` is the console script."""

import sys

from tltasks.cli import main

sys.exit(main())
