"""The error types of this package.

Ray reports the same fault (no server there, a wrong token) by half a dozen types of its own; a
command needs one type to catch and one line to print.
"""


class ClusterError(RuntimeError):
    """Raised when a Ray cluster can't be started, reached or used; the message has the remedy.

    Examples:
        >>> issubclass(sl.ClusterError, RuntimeError)
        True
    """


class ClusterLostError(ClusterError):
    """Raised when a part of the cluster was lost while it was in use; the same call goes on.

    Examples:
        >>> issubclass(sl.ClusterLostError, sl.ClusterError)  # try again once it is back
        True
    """


class ExtensionError(ValueError):
    """Raised for a user's file of own readers, scores or models that can't be run.

    Examples:
        >>> sl.extend("my_models.py")
        Traceback (most recent call last):
            ...
        cluster.errors.ExtensionError: ...
    """
