"""``python -m controlplane``: the same as ``eep-controlplane``."""

import sys

from controlplane.service import main

sys.exit(main())
