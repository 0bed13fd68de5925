"""`python -m tltasks` is the console script."""

import sys

from tltasks.cli.commands import main

sys.exit(main())
