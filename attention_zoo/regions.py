"""The one cut of a map into equal regions, and its inverse: windows, stripes, grids and regions are cases of it."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Partition:
    """Cut of a `height` x `width` map into regions of `rows` x `cols` tokens.

    `down` x `across` blocks cover the map; a block of `rows * step_y` x `cols * step_x` tokens holds
    `step_y * step_x` regions, each of the tokens that lie a step apart: with steps of 1 a region is the block itself.
    What the map lacks to whole blocks is padded at the bottom and right, but for `top` rows and `left` columns. With
    a shift the padded map is rolled up and left before the cut, so its first `shift_y` rows land in the last regions.
    """

    height: int
    width: int
    rows: int
    cols: int
    down: int
    across: int
    shift_y: int = 0
    shift_x: int = 0
    step_y: int = 1
    step_x: int = 1
    top: int = 0
    left: int = 0
    padded_size: tuple[int, int] = field(init=False, repr=False, compare=False)
    """Height and width of the padded map."""
    is_padded: bool = field(init=False, repr=False, compare=False)
    """Whether some region holds a token that the map does not have."""

    def __post_init__(self) -> None:
        """Work out once what every step of a forward asks."""
        size = self.down * self.rows * self.step_y, self.across * self.cols * self.step_x
        object.__setattr__(self, "padded_size", size)
        object.__setattr__(self, "is_padded", size != (self.height, self.width))

    @classmethod
    def of_size(
        cls,
        height: int,
        width: int,
        rows: int,
        cols: int,
        *,
        shift: tuple[int, int] = (0, 0),
        step: tuple[int, int] = (1, 1),
        centred: bool = False,
    ) -> "Partition":
        """Cut into regions of `rows` x `cols` tokens, as few as cover the map; `centred` pads both ends alike."""
        down, across = -(-height // (rows * step[0])), -(-width // (cols * step[1]))
        top = (down * rows * step[0] - height) // 2 if centred else 0
        left = (across * cols * step[1] - width) // 2 if centred else 0
        return cls(height, width, rows, cols, down, across, *shift, *step, top, left)

    @classmethod
    def of_count(
        cls, height: int, width: int, per_side: int, *, centred: bool = False, keep_empty: bool = False
    ) -> "Partition":
        """Cut into regions of ceil(height / per_side) x ceil(width / per_side) tokens.

        On a map that does not divide, fewer than `per_side` regions can cover a side: those that would hold no
        token of the map are left out, unless they are kept.
        """
        rows, cols = -(-height // per_side), -(-width // per_side)
        if keep_empty:
            top, left = ((per_side * rows - height) // 2, (per_side * cols - width) // 2) if centred else (0, 0)
            return cls(height, width, rows, cols, per_side, per_side, top=top, left=left)
        return cls.of_size(height, width, rows, cols, centred=centred)

    @property
    def count(self) -> int:
        """Number of regions, R."""
        return self.down * self.step_y * self.across * self.step_x

    @property
    def tokens(self) -> int:
        """Tokens in a region, T, padding included."""
        return self.rows * self.cols

    @property
    def is_rolled(self) -> bool:
        """Whether the map is rolled before the cut."""
        return bool(self.shift_y or self.shift_x)

    @property
    def pad_ratio(self) -> float:
        """Padded tokens over the map's own."""
        return self.count * self.tokens / (self.height * self.width) - 1

    def pad(self, x: Tensor) -> Tensor:
        """Pad a map with zeros to whole blocks: (B, H, W, C) -> (B, *padded_size, C)."""
        if not self.is_padded:
            return x
        height, width = self.padded_size
        bottom, right = height - self.height - self.top, width - self.width - self.left
        return F.pad(x, (0, 0, self.left, right, self.top, bottom))

    def crop(self, x: Tensor) -> Tensor:
        """Take the map out of the padded one, the inverse of `pad`."""
        if not self.is_padded:
            return x
        return x[:, self.top : self.top + self.height, self.left : self.left + self.width]

    def filled(self) -> "Partition":
        """Return the same cut of a map that has the size of the padded one."""
        height, width = self.padded_size
        return replace(self, height=height, width=width, top=0, left=0)

    def split(self, x: Tensor) -> Tensor:
        """Cut a map: (B, H, W, C) -> (B, R, T, C). Padding holds zeros or what x held there: see `blank`."""
        batch, _, _, channels = x.shape
        x = self.pad(x)
        if self.is_rolled:
            x = x.roll((-self.shift_y, -self.shift_x), (1, 2))
        x = x.reshape(batch, self.down, self.rows, self.step_y, self.across, self.cols, self.step_x, channels)
        return x.permute(0, 1, 3, 4, 6, 2, 5, 7).reshape(batch, self.count, self.tokens, channels)

    def join(self, regions: Tensor) -> Tensor:
        """Put the regions back and crop the padding: (B, R, T, C) -> (B, H, W, C)."""
        batch, _, _, channels = regions.shape
        x = regions.reshape(batch, self.down, self.step_y, self.across, self.step_x, self.rows, self.cols, channels)
        x = x.permute(0, 1, 5, 2, 3, 6, 4, 7).reshape(batch, *self.padded_size, channels)
        if self.is_rolled:
            x = x.roll((self.shift_y, self.shift_x), (1, 2))
        return self.crop(x)

    def locate(self, row: Tensor, col: Tensor) -> Tensor:
        """Region of the tokens at these coordinates of the map, by arithmetic alone; those of padding are valid too."""
        down, phase_y = _block(row + self.top - self.shift_y, self.down, self.rows, self.step_y)
        across, phase_x = _block(col + self.left - self.shift_x, self.across, self.cols, self.step_x)
        return ((down * self.step_y + phase_y) * self.across + across) * self.step_x + phase_x

    def inside(self, device: torch.device) -> Tensor:
        """Indices of the map's own tokens among those of the padded map, row-major: (H W,)."""
        row, col = coordinates(self.height, self.width, device)
        return (row + self.top) * self.padded_size[1] + col + self.left

    def valid(self, device: torch.device) -> Tensor | None:
        """Which tokens of the regions are the map's own: (R, T) boolean, or None where all are."""
        if not self.is_padded:
            return None
        inside = torch.ones(1, self.height, self.width, 1, device=device)
        return self.split(inside)[0, :, :, 0] > 0

    def sides(self, device: torch.device) -> Tensor | None:
        """On which side of the roll's seam each token of each region lies, -1 for padding: (R, T) integers.

        None where neither padding nor a shift tells the tokens of a region apart.
        """
        if not (self.is_padded or self.is_rolled):
            return None
        row, col = coordinates(self.height, self.width, device)
        # counted from 1, so that the zeros of the padding become -1
        side = 1 + 2 * (row < self.shift_y - self.top) + (col < self.shift_x - self.left)
        return self.split(side.reshape(1, self.height, self.width, 1))[0, :, :, 0] - 1


def _block(at: Tensor, blocks: int, length: int, step: int) -> tuple[Tensor, Tensor]:
    """Block and phase within a step of places along one side, the roll undone."""
    at = at % (blocks * length * step)
    return at // (length * step), at % step


def blank(regions: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the tokens that are not the map's own: (B, R, T, C) under `valid` (R, T).

    A masked key has weight 0, but 0 times the NaN that its padding may hold is NaN, in the output and in every
    gradient. After this nothing downstream depends on what padding holds.
    """
    return regions if valid is None else regions.masked_fill(~valid[..., None], 0)


def to_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split channels into heads: (B, N, C) -> (B, heads, N, D)."""
    batch, tokens, channels = x.shape
    return x.reshape(batch, tokens, num_heads, channels // num_heads).transpose(1, 2)


def from_heads(x: Tensor) -> Tensor:
    """Merge heads into channels: (B, heads, N, D) -> (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


def coordinates(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each token of a map in row-major order: two (N,) integer tensors."""
    token = torch.arange(height * width, device=device)
    return token // width, token % width
