"""Where results are to be written: for argparse, before anything is started."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def file(text: str) -> Path:
    """A file that can be written: in a folder that is there."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such folder")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: it is a folder; a file is wanted")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r}: it cannot be written")
    return path


def folder(text: str) -> Path:
    """A folder, or one that can be made."""
    path = Path(text).absolute()
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r}: {there} cannot be written to")
    return Path(text)
