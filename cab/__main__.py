"""``python -m cab`` is ``cab``."""

import sys

from cab.cli import main

sys.exit(main())
