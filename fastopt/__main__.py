"""``python -m fastopt`` is the command ``fastopt``."""

import sys

from fastopt.cli import main

sys.exit(main())
