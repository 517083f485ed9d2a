from pathlib import Path

from faceshards.api.build import build as build
from faceshards.api.dataset import Dataset as Dataset
from faceshards.api.stream import Stream as Stream
from faceshards.errors import FaceshardsError as FaceshardsError

__version__: str

def open(path: Path | str) -> Dataset: ...
