"""`python -m neuroplastic.cli` is `npt`."""

import sys

from . import main

sys.exit(main())
