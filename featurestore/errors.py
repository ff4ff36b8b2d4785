"""Errors that a user can act on: each message says what was given, what is allowed, what to do."""


class LakeError(ValueError):
    """Something about a lake, its tables or a question to it is not as it must be."""


class LakeMissingError(LakeError):
    """There is no lake at the given place."""


class AccessError(LakeError):
    """Raised where a file can't be read or written now; what is stored may be whole."""


class InUseError(LakeError):
    """Raised where another process uses the lake for longer than the allowed wait."""


class BucketError(AccessError):
    """The bucket did not do what was asked; nothing is said of what is stored in it."""


class FormatError(LakeError):
    """The lake was written in a format that this version does not read."""


class NewerFormatError(FormatError):
    """The lake was written by a newer slidelake, in a format that this version does not read."""


class IdentityError(LakeError):
    """A teacher of this name is already there with other weights, pooling or preprocessing."""


class DamageError(LakeError):
    """What is stored is not what was committed: a file is gone, short or changed."""
