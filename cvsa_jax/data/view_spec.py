"""How the two views of each image are made, as plain settings that check themselves."""

import dataclasses

from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError

KINDS = ("saliency_swap", "random_resized_crop")
PASTES = ("bounded", "keep_aspect", "stretch")
HOLES = ("cover", "size")
BACKGROUNDS = ("different", "common")
WHERE = ("host", "device")
SQUARE = 2  # sides of the view that an image has where it is kept as a square, unless config.views.stored says another
MASK_STRIDE = 4  # pixels of the view per cell of the mask that travels to the device


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """`config.views`; areas are (low, high) fractions.

    Attributes:
        kind: one of KINDS.
        size: side of the view in px.
        group: images decoded together, which lend each other their backgrounds.
        swap_prob: share of the views that are swapped; the others are Random Resized Crops.
        swapped_views: 2, or 1 and only view 1 is swapped.
        source_area, paste_area: ranges of the box's share of the source and of the canvas.
        hole: what of the background is replaced: `cover`, a box of random size that is made as much larger as it takes
            to hold the share `cover` of the background's object, or `size`, a box of random size where it is most
            salient, which may leave much of a large object.
        paste: the aspect of the pasted box. `bounded` distorts the crop no more than Random Resized Crop does,
            `keep_aspect` not at all; `stretch` draws the box's aspect alone, and the crop is made to fit.
        background: the two views of an image have `different` backgrounds, or a `common` one.
        canvas_min: smallest side of the canvas window as a fraction of the background; 1 takes it whole.
        crop_area: range of the share of Random Resized Crop.
        where: the views are made on the `host`, as the batches come, or on the `device`, which then holds all images,
            as squares, and all maps.
        stored: side in px of the squares to which images are squeezed where they are kept decoded; see `square`.
        threshold: `config.saliency.threshold`: the cells from there on are the object. A map without any shows no
            object, and its boxes lie in the middle.
    """

    kind: str
    size: int
    group: int
    swap_prob: float
    swapped_views: int
    source_area: tuple[float, ...]
    paste_area: tuple[float, ...]
    hole: str
    cover: float
    paste: str
    background: str
    canvas_min: float
    crop_area: tuple[float, ...]
    where: str
    stored: int | None
    threshold: float

    def __post_init__(self):
        checks.choice("config.views.kind", self.kind, KINDS)
        checks.choice("config.views.hole", self.hole, HOLES)
        checks.choice("config.views.paste", self.paste, PASTES)
        checks.choice("config.views.background", self.background, BACKGROUNDS)
        checks.choice("config.views.where", self.where, WHERE)
        checks.choice("config.views.swapped_views", self.swapped_views, (1, 2))
        checks.probability("config.views.swap_prob", self.swap_prob)
        checks.area("config.views.source_area", self.source_area)
        checks.area("config.views.paste_area", self.paste_area)
        checks.area("config.views.crop_area", self.crop_area)
        checks.share("config.views.cover", self.cover)
        if self.group < 3:
            raise UserError(f"config.views.group={self.group}: an image and two different backgrounds need at least 3")
        if not 0 < self.canvas_min <= 1:
            raise UserError(f"config.views.canvas_min={self.canvas_min:g} does not lie in (0, 1]")
        if self.stored is not None:
            checks.at_least("config.views.stored", self.stored, 1)

    @property
    def square(self) -> int:
        """Side in px of the squares in which decoded images are kept."""
        return self.stored or SQUARE * self.size

    def check_stride(self, stride: int) -> None:
        """UserError unless the backbone's stride divides the size."""
        if self.size % stride:
            raise UserError(f"config.views.size={self.size} is not a multiple of the backbone's stride {stride}")
