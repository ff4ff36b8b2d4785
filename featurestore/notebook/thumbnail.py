"""A slide's stored thumbnail as a picture."""

import io
from typing import TYPE_CHECKING

from featurestore.errors import DamageError

if TYPE_CHECKING:
    from PIL import Image


def decoded_thumbnail(jpeg: bytes, slide_id: str) -> "Image.Image":
    """Return a thumbnail as an RGB picture.

    Args:
        jpeg: bytes of the picture.
        slide_id: slide of the picture, for messages.

    Raises:
        DamageError: the bytes are no picture.
    """
    # Pillow is not needed by most who open a lake.
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg)) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        msg = f"the thumbnail of slide '{slide_id}' is no picture: run slidelake verify"
        raise DamageError(msg) from error


def reduced_jpeg(jpeg: bytes, slide_id: str, longest_px: int) -> bytes:
    """Return a thumbnail as a smaller JPEG.

    Args:
        jpeg: bytes of the picture.
        slide_id: slide of the picture, for messages.
        longest_px: most pixels of the longer side.

    Raises:
        DamageError: the bytes are no picture.
    """
    picture = decoded_thumbnail(jpeg, slide_id)
    picture.thumbnail((longest_px, longest_px))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=75)
    return out.getvalue()
