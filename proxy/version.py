"""The version of this distribution, from its metadata."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("holdfast")
