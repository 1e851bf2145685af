"""``python -m fairy.benchmarks.gpu CALL OUT``: see `run.py`."""

import sys

from fairy.benchmarks.gpu.run import main

sys.exit(main())
