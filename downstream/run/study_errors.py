"""The error of options that make no study; apart, so that naming it imports nothing heavy."""


class StudyError(ValueError):
    """Options of a run that do not make sense."""
