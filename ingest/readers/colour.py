"""Colours of a scanner as sRGB, by the ICC profile that it put into the slide."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from ingest.errors import SlideError

RgbArray = npt.NDArray[np.uint8]


class SrgbTransform:
    """A conversion of pixels to sRGB.

    Args:
        path: path of the slide, for messages.
        profile: ICC profile of the slide.

    Raises:
        SlideError: the profile is damaged, or is not one of RGB colours.
    """

    def __init__(self, path: str, profile: bytes) -> None:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            self._transform = ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                "RGB",
                "RGB",
                ImageCms.Intent(ImageCms.getDefaultIntent(source)),
            )
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            msg = f"{path}: its ICC profile can't be used ({error}); ingest it without --icc"
            raise SlideError(msg) from error

    def __call__(self, rgb: RgbArray) -> RgbArray:
        """Return pixels [H, W, 3] in sRGB."""
        image = Image.fromarray(np.ascontiguousarray(rgb))
        ImageCms.applyTransform(image, self._transform, inPlace=True)
        return np.array(image)
