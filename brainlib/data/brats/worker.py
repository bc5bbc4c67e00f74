"""One process of a conversion: ``python -m brainlib.data.brats.worker`` reads jobs and writes answers, line by line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from brainlib.files import DataError

from .layout import Source
from .store import Options, attempt


def main() -> int:
    """Work until the input ends. Keys of ``files`` that were z positions became text on the way."""
    for line in sys.stdin:
        job = json.loads(line)
        source = Source(**job["source"])
        if source.kind == "hdf5":
            source.files = {int(z): path for z, path in source.files.items()}
        options = Options(**{k: tuple(v) if isinstance(v, list) else v for k, v in job["options"].items()})
        try:
            reply = {"answer": attempt(source, Path(job["target"]), options)}
        except DataError as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
