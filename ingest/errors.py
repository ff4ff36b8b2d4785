"""What can be wrong with a slide or a teacher; the message is what the user reads."""


class SlideError(ValueError):
    """A slide that can't be cut; the text becomes the `reason` in its row."""


class InputError(ValueError):
    """What was given to a command can't be used."""


class TeacherError(ValueError):
    """A teacher that is not known, or whose weights are not here."""
