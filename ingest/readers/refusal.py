"""Reasons why a file is no slide that can be read, in words that are true of it."""

from pathlib import Path

# How a file begins -> what it is. Checked in this order.
BEGINNINGS = (
    (b"\x89HDF\r\n", "is an HDF5 file, which holds features or an Imaris volume and is no slide"),
    (b"\xff\x4f\xff\x51", "is a JPEG 2000 codestream, which is not read as a slide"),
    (b"\0\0\0\x0cjP  ", "is a JPEG 2000 picture, which is not read as a slide; convert it to TIFF"),
    (b"\0\0\0\x0cJXL ", "is a JPEG XL picture, which is not read as a slide; convert it to TIFF"),
    (b"\xff\x0a", "is a JPEG XL codestream, which is not read as a slide; convert it to TIFF"),
    (b"PK\x03\x04", "is a ZIP archive; unpack it and give the slide in it"),
    (b"\x1f\x8b", "is gzip-compressed; unpack it and give the slide in it"),
    (b"%PDF", "is a PDF"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself; run git lfs pull"),
    (b"<!DOCTYPE", "is a web page; what was downloaded is not the slide"),
    (b"<html", "is a web page; what was downloaded is not the slide"),
    (b"<?xml", "is an XML file, and no slide"),
)
PICTURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP", b"RIFF": "WebP"}
# Compressions of TIFFs whose tiles neither openslide nor Pillow decodes.
CODECS = {
    22610: "JPEG XR", 34934: "JPEG XR", 34712: "JPEG 2000 (34712)", 34887: "LERC",
    50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip


def head_of(path: str, size: int = 64) -> bytes:
    """Return the first bytes of a file; b"" if it can't be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def picture_kind(path: str) -> str | None:
    """Return the format of a picture that can be decoded as a whole; None for other files."""
    head = head_of(path)
    if Path(path).suffix.lower() == ".mrxs":
        return None
    return next((kind for magic, kind in PICTURES.items() if head.startswith(magic)), None)


def why_no_slide(path: str, formats: str) -> str:
    """Return why no reader reads a file, beginning with the file's name.

    Args:
        path: path of the file.
        formats: the formats that are read, in words.
    """
    head, suffix = head_of(path), Path(path).suffix.lower()
    if not head:
        return f"{path} is empty: it is not a slide"
    if suffix == ".mrxs":
        folder = Path(path).with_suffix("")
        if not (folder / "Slidedat.ini").exists():
            return (
                f"{path} needs the folder {folder.name} with Slidedat.ini beside it, which is not "
                "there; copy both"
            )
    for magic, text in BEGINNINGS:
        if head.startswith(magic):
            return f"{path} {text}"
    return f"{path} is not {formats} (or it is truncated)"


def undecodable(compression: int) -> str | None:
    """Return the name of a TIFF's compression that no reader decodes; None for others."""
    return CODECS.get(compression)
