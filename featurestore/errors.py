"""Errors that a user can act on: messages name the input, the allowed values and the remedy."""


class LakeError(ValueError):
    """Raised for an invalid lake or table, or for an invalid request to a lake."""


class LakeMissingError(LakeError):
    """Raised when there is no lake at the given place."""


class AccessError(LakeError):
    """Raised where a file can't be read or written now; what is stored may be whole."""


class InUseError(LakeError):
    """Raised where another process uses the lake for longer than the allowed wait."""


class BucketError(AccessError):
    """Raised when a bucket fails; this is no evidence of damage to the stored files."""


class FormatError(LakeError):
    """Raised for a lake of a format that this version does not read."""


class NewerFormatError(FormatError):
    """Raised for a lake of a format that only a newer slidelake reads."""


class IdentityError(LakeError):
    """Raised where a teacher's name is taken by other weights, pooling or preprocessing."""


class DamageError(LakeError):
    """Raised when a stored file differs from the committed one: missing, short or changed."""
