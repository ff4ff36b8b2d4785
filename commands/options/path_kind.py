"""The kinds of paths among the options of commands."""

from enum import Enum


class PathKind(Enum):
    """The kind of what lies at the path of an option, which decides how it gets to a job.

    Attributes:
        LAKE: the folder of a lake; it does not travel.
        SLIDES: slides, which do not travel, or a manifest of URLs, which does.
        WEIGHTS: a folder of weights; it does not travel.
        FILES: a small file or folder that is read; it travels.
        PYTHON: a user's own Python file, where the text ends in .py, or in .py and what is taken
            of an encoder's tokens (encoder.py:patches); it travels.
        NAMED_FILE: a file that travels, as NAME=FILE.
        SETTING: a field of a run's settings, as FIELD=VALUE; some are files that travel.
        OUTPUT: a file or folder that is written; it comes back.
    """

    LAKE = "lake"
    SLIDES = "slides"
    WEIGHTS = "weights"
    FILES = "files"
    PYTHON = "python"
    NAMED_FILE = "named file"
    SETTING = "setting"
    OUTPUT = "output"
