"""Errors that a user can act on: each message names what was given, what is allowed, what to do."""


class LakeError(ValueError):
    """Raised for a lake, a table of one or a question to it that is not as it must be."""


class LakeMissingError(LakeError):
    """Raised where there is no lake at the given place."""


class AccessError(LakeError):
    """Raised where a file can't be read or written now; what is stored may be whole."""


class InUseError(LakeError):
    """Raised where another process uses the lake for longer than the allowed wait."""


class BucketError(AccessError):
    """Raised where a bucket fails; the error says nothing of what is stored in it."""


class FormatError(LakeError):
    """Raised for a lake of a format that this version does not read."""


class NewerFormatError(FormatError):
    """Raised for a lake of a format that only a newer slidelake reads."""


class IdentityError(LakeError):
    """Raised where a teacher's name is taken by other weights, pooling or preprocessing."""


class DamageError(LakeError):
    """Raised where stored files are not what was committed: one is gone, short or changed."""
