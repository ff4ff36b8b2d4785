"""Errors that a user can act on: messages name the input, the allowed values and the remedy."""


class LakeError(ValueError):
    """Raised for an invalid lake or table, or for an invalid request to a lake.

    Examples:
        >>> try:
        ...     sl.open_lake("my-lake").features("uni2", mpp=0.5)
        ... except sl.LakeError as error:
        ...     print(error)
        no features of 'uni2' at mpp 0.5 in .../my-lake; did you mean 'uni2_h'?; there are: ...
    """


class LakeMissingError(LakeError):
    """Raised when there is no lake at the given place.

    Examples:
        >>> try:
        ...     lake = sl.open_lake("new-lake")
        ... except sl.LakeMissingError:
        ...     lake = sl.create_lake("new-lake", sl.LakeConfig())
    """


class AccessError(LakeError):
    """Raised where a file can't be read or written now; what is stored may be whole.

    Examples:
        >>> issubclass(sl.AccessError, sl.LakeError), issubclass(sl.AccessError, sl.DamageError)
        (True, False)
    """


class InUseError(LakeError):
    """Raised where another process uses the lake for longer than the allowed wait.

    Examples:
        >>> issubclass(sl.InUseError, sl.LakeError)  # wait for the other job, then try again
        True
    """


class BucketError(AccessError):
    """Raised when a bucket fails; this is no evidence of damage to the stored files.

    Examples:
        >>> issubclass(sl.BucketError, sl.AccessError)  # the bucket may answer later
        True
    """


class BucketDownError(BucketError):
    """Raised when a bucket can't be reached or fails at every attempt; try again later.

    Examples:
        >>> issubclass(sl.BucketDownError, sl.BucketError)  # no fault of keys or names
        True
    """


class FormatError(LakeError):
    """Raised for a lake of a format that this version does not read.

    Examples:
        >>> sl.LakeConfig.from_json(b"{}", uri="my-lake")
        Traceback (most recent call last):
            ...
        featurestore.errors.FormatError: my-lake/lake.json is not a lake's description: 'format'
    """


class NewerFormatError(FormatError):
    """Raised for a lake of a format that only a newer slidelake reads."""


class IdentityError(LakeError):
    """Raised where a teacher's name is taken by other weights, pooling or preprocessing.

    Examples:
        >>> issubclass(sl.IdentityError, sl.LakeError)  # use another name, or drop the column
        True
    """


class DamageError(LakeError):
    """Raised when a stored file differs from the committed one: missing, short or changed.

    Examples:
        >>> import pathlib
        >>> size = pathlib.Path("my-lake/lake.json").write_text("{}")
        >>> sl.open_lake("my-lake")
        Traceback (most recent call last):
            ...
        featurestore.errors.DamageError: .../my-lake/lake.json is not what was written; ...
    """


class LicenceError(LakeError):
    """Raised where an encoder's licence forbids what a command would do.

    Examples:
        >>> issubclass(sl.LicenceError, sl.LakeError)  # state a permission, if you have one
        True
    """
