"""One process of :func:`make_phantom`: ``python -m brainlib.data.phantom.worker FOLDER SEED SETTINGS``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ...files import DataError
from .settings import PhantomSettings
from .write import work


def main(folder: str, seed: str, settings: str) -> int:
    """Work until nothing is left, or until the process that started this one is gone. 3: the user can mend it."""
    parent = os.getppid()
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(settings).items()}
    try:
        for _ in work(Path(folder), int(seed), PhantomSettings(**values)):
            if os.getppid() != parent:
                return 1
    except DataError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
