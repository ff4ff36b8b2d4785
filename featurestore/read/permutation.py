"""A shuffled order of any length that is computed and never stored.

A Feistel network permutes the numbers below a power of four, at most four times the length (or
64); what falls outside is put in again until it falls inside (cycle walking). Any place of the
order costs the same, so an epoch over 10^8 blocks starts at once and can resume anywhere.

Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains.
"""

import numpy as np
import numpy.typing as npt

ROUNDS = 6

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]


class Permutation:
    """A permutation of 0 to size - 1.

    Args:
        size: number of elements, less than 2**62.
        key: integers that choose the permutation, as numpy's seeds.

    >>> Permutation(5, [1]).at(np.arange(5)).tolist()
    [2, 0, 4, 3, 1]
    """

    def __init__(self, size: int, key: list[int]) -> None:
        self.size = size
        # At least 3 bits a half: with fewer, some orders of few things come too often.
        self._half = np.uint64(max(3, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)

    def at(self, places: npt.ArrayLike) -> Int64Array:
        """Return the permuted numbers at some places, each from 0 to size - 1."""
        numbers = self._mixed(np.asarray(places).astype(np.uint64))
        outside = numbers >= self.size
        while outside.any():
            numbers[outside] = self._mixed(numbers[outside])
            outside = numbers >= self.size
        return numbers.astype(np.int64)

    def _mixed(self, numbers: UInt64Array) -> UInt64Array:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_hash(right ^ key) & self._mask)
        return left << self._half | right


def _hash(numbers: UInt64Array) -> UInt64Array:
    """Return hashes, every bit of which depends on every bit of the input.

    Source: splitmix64, Vigna 2015.
    """
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)
