"""The error of options that make no study; apart, so that naming it imports nothing heavy."""


class StudyError(ValueError):
    """An error for options that do not define a study.

    Examples:
        >>> sl.run_mil("my-lake", "labels.csv", "grade", ["student", "student"], mpps=[0.5])
        Traceback (most recent call last):
            ...
        downstream.run.study_errors.StudyError: feature set 'student'; name each once, ...
    """
