"""Pictures without any network: read, brought to size, filled and pasted back, laid out, written."""

from kerasdiff.images.masks import fill, paste_back
from kerasdiff.images.reader import fit_size, prepare, read, read_mask
from kerasdiff.images.tools import grid, outpaint, plot_gallery, resize, save_images

__all__ = [
    "fill",
    "fit_size",
    "grid",
    "outpaint",
    "paste_back",
    "plot_gallery",
    "prepare",
    "read",
    "read_mask",
    "resize",
    "save_images",
]
