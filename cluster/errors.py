"""The one error of this package.

Ray reports the same fault (no server there, a wrong token) by half a dozen types of its own; a
command wants one type to catch and one line to print.
"""


class ClusterError(RuntimeError):
    """A Ray cluster could not be started, reached or used; the message gives the remedy."""
