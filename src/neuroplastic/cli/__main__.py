"""`python -m neuroplastic.cli` is `npt`."""

import sys

from ..cli import main

sys.exit(main())
