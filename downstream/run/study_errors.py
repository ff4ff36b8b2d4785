"""The error of options that make no study; apart, so that naming it imports nothing heavy."""


class StudyError(ValueError):
    """An error for options that do not define a study."""
