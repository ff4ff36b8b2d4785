"""Classes of the reasons why slides and fragments fail, few enough for a label of a metric."""

import re

#: Class -> words of reasons in it; the first that fits counts, so the sharper ones come first.
CLASSES: dict[str, str] = {
    "disk_full": r"no space left|disk quota|does not fit into|GB are free|disk is full",
    "denied": r"denied|forbidden|credentials|no permission|permission denied",
    "timeout": r"took longer|timed out|no answer for",
    "crash": r"\bdied\b|out of memory|crash|ActorDied|WorkerCrashed|NodeDied|SIGKILL|SIGSEGV",
    "network": r"no connection|broke off|server (failed|is too busy|answered)|other bytes than",
    "missing": r"does not exist|no such file|is gone|is not there|dangling",
    "no_mpp": r"\bmpp\b",
    "no_tissue": r"no tissue found|marks no tissue",
    "mask": r"\bmask\b",
    "unsupported": r"is not a slide|is no slide|compressed as|bits per sample|channels|is CMYK"
    r"|greyscale|is a (folder|pipe|picture)|photometric|needs the folder|convert it|no reader",
    "damaged": r"cut off|damaged?\b|can't be (decoded|opened|read)|changed while|truncated|checksum"
    r"|is empty|claims \d|in a circle|sides of 1|DamageError|does not hold the tiles",
}
OTHER = "other"


def reason_class(reason: str) -> str:
    """Return the class of a reason.

    >>> reason_class("the worker died on it (a crash in a decoder, or out of memory)")
    'crash'
    >>> reason_class("it does not say its mpp")
    'no_mpp'
    """
    # A folder or a file may have any name; one of "crash test" is no crash.
    text = re.sub(r"\S*/\S*", "", reason)
    for name, words in CLASSES.items():
        if re.search(words, text, re.IGNORECASE):
            return name
    return OTHER
