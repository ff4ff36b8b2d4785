"""A span from a low to a high value: what is known of a number that was not measured yet."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Span:
    """A number that lies between `low` and `high`, both 0 or more.

    >>> Span(1000, 2000) * 3, Span(1, 2) + Span(10, 20)
    (Span(low=3000, high=6000), Span(low=11, high=22))
    """

    low: float
    high: float

    @classmethod
    def around(cls, middle: float, share: float) -> Self:
        """Return the span from a share below the middle to a share above it.

        >>> Span.around(100, 0.2)
        Span(low=80.0, high=120.0)
        """
        return cls(middle * max(0.0, 1 - share), middle * (1 + share))

    @classmethod
    def exactly(cls, number: float) -> Self:
        """Return the span of a number that is known."""
        return cls(number, number)

    def __add__(self, other: "Span") -> "Span":
        return Span(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: "float | Span") -> "Span":
        by = factor if isinstance(factor, Span) else Span(factor, factor)
        return Span(self.low * by.low, self.high * by.high)

    def over(self, rate: "Span") -> "Span":
        """Return the span of this amount at a rate: the highest rate takes the least."""
        return Span(self.low / rate.high, self.high / rate.low)

    def text(self, unit: str = "") -> str:
        """Return the span in two digits.

        >>> Span(1_234_567, 2_345_678).text(), Span(0.123, 0.123).text("h"), Span(950, 1040).text()
        ('1.2 to 2.3 million', '0.12 h', '950 to 1,000')
        """
        scale, name = _scale(self.high)
        low, high = _two_digits(self.low / scale), _two_digits(self.high / scale)
        words = low if low == high else f"{low} to {high}"
        return " ".join(part for part in (words, name, unit) if part)

    def bytes_text(self) -> str:
        """Return the span as bytes.

        >>> Span(2.5e12, 3.5e12).bytes_text()
        '2.5 to 3.5 TB'
        """
        units = ("B", "kB", "MB", "GB", "TB", "PB")
        power = min(len(units) - 1, int(math.log10(max(1.0, self.high)) / 3))
        scaled = Span(self.low / 1000**power, self.high / 1000**power)
        return scaled.text(units[power])


def _scale(number: float) -> tuple[float, str]:
    for scale, name in ((1e9, "billion"), (1e6, "million")):
        if number >= scale:
            return scale, name
    return 1.0, ""


def _two_digits(number: float) -> str:
    if number <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(number))
    rounded = round(number, digits)
    return (
        f"{rounded:,.{max(0, digits)}f}".rstrip("0").rstrip(".")
        if digits > 0
        else (f"{rounded:,.0f}")
    )
