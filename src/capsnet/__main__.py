"""`python -m capsnet` is the `capsnet` command."""

import sys

from capsnet.cli import main

sys.exit(main())
