"""Maps of networks in one layout, whatever the layout in which a network gives them.

Letters in names: B images, C channels, H W places of a map.
"""

from torch import Tensor, nn

from ingest.errors import TeacherError


def channels_last_map(network: nn.Module, features: Tensor) -> Tensor:
    """Return a network's map as [B, H, W, C].

    Convolutional networks of timm give [B, C, H, W]; those of windows, as Swin, give [B, H, W, C]
    and say so by their `output_fmt`.

    Args:
        network: the network, of timm or with its attributes.
        features: its map, with four axes.

    Raises:
        TeacherError: the channels are not where `output_fmt` says they are.
    """
    layout = getattr(network, "output_fmt", "NCHW")
    is_last = getattr(layout, "value", layout) == "NHWC"
    channels, other = (features.shape[axis] for axis in ((-1, 1) if is_last else (1, -1)))
    expected = getattr(network, "num_features", channels)
    if channels != expected and other == expected:
        msg = (
            f"{type(network).__name__} gives a map {list(features.shape[1:])} of {expected} "
            f"channels, which is not {'[H, W, C]' if is_last else '[C, H, W]'}: set its output_fmt "
            "to NHWC or NCHW"
        )
        raise TeacherError(msg)
    return features if is_last else features.permute(0, 2, 3, 1)
