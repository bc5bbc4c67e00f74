"""brainlib: the small tested library under the course "Deep Learning for Brain MRI".

Data flows one way: ``data -> models -> train -> evaluate -> results``; ``plot`` and ``course`` stand at the end.
For teaching and research, not a medical device.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("brainlib")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
