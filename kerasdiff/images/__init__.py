"""Images without any network: read, resize, mask, lay out, write."""

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
