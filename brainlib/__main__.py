"""``python -m brainlib`` is the ``brainlib`` command."""

import sys

from brainlib.course import main

sys.exit(main())
