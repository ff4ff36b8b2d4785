"""What a failing read is called: damage, no access, or what it was."""

import errno
import re

import pytest

from featurestore import AccessError, DamageError
from featurestore.storage import reading
from featurestore.storage.read_errors import LakeUri


class PanicException(BaseException):
    """A panic in Rust as Python gets it: no Exception, with places of the source in its text."""


def test_a_panic_of_rust_is_damage_of_the_file() -> None:
    panic = PanicException("range end 9 out of range, /rust/lance-1.0/src/page.rs:12:3\nnote")
    with pytest.raises(DamageError) as error, reading(LakeUri("lake"), "features/mpp0.5.lance"):
        raise panic
    assert re.match(r"features/mpp0\.5\.lance: range end 9 out of range; run ", str(error.value))


def test_a_lack_of_file_handles_is_no_damage() -> None:
    with pytest.raises(AccessError, match="Too many open files"), reading(LakeUri("lake"), "x"):
        raise OSError(errno.EMFILE, "")


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_ends_a_process_goes_on(ends: type[BaseException]) -> None:
    with pytest.raises(ends), reading(LakeUri("lake"), "x"):
        raise ends
