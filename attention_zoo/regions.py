"""The one cut of a map into equal regions, and its inverse: windows, stripes and regions are sizes of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Partition:
    """Cut of a `height` x `width` map into `down` x `across` regions of `rows` x `cols` tokens.

    What the map lacks to `down * rows` x `across * cols` tokens is padded at the bottom and right. With a shift
    the padded map is rolled up and left before the cut, so its first `shift_y` rows land in the last regions.
    """

    height: int
    width: int
    rows: int
    cols: int
    down: int
    across: int
    shift_y: int = 0
    shift_x: int = 0

    @classmethod
    def of_size(
        cls, height: int, width: int, rows: int, cols: int, *, shift_y: int = 0, shift_x: int = 0
    ) -> "Partition":
        """Cut into regions of `rows` x `cols` tokens, as few as cover the map."""
        return cls(height, width, rows, cols, -(-height // rows), -(-width // cols), shift_y, shift_x)

    @classmethod
    def of_count(cls, height: int, width: int, per_side: int) -> "Partition":
        """Cut into regions of ceil(height / per_side) x ceil(width / per_side) tokens.

        On a map that does not divide, fewer than `per_side` regions can cover a side: those that would hold no
        token of the map are left out.
        """
        return cls.of_size(height, width, -(-height // per_side), -(-width // per_side))

    @property
    def count(self) -> int:
        """Number of regions, R."""
        return self.down * self.across

    @property
    def tokens(self) -> int:
        """Tokens in a region, T, padding included."""
        return self.rows * self.cols

    @property
    def is_padded(self) -> bool:
        """Whether some region holds a token that the map does not have."""
        return self.count * self.tokens != self.height * self.width

    def split(self, x: Tensor) -> Tensor:
        """Cut a map: (B, H, W, C) -> (B, R, T, C). What the padding holds is nobody's business: see `blank`."""
        batch, _, _, channels = x.shape
        if self.is_padded:
            bottom, right = self.down * self.rows - self.height, self.across * self.cols - self.width
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        if self.shift_y or self.shift_x:
            x = x.roll((-self.shift_y, -self.shift_x), (1, 2))
        x = x.reshape(batch, self.down, self.rows, self.across, self.cols, channels)
        return x.transpose(2, 3).reshape(batch, self.count, self.tokens, channels)

    def join(self, regions: Tensor) -> Tensor:
        """Put the regions back and crop the padding: (B, R, T, C) -> (B, H, W, C)."""
        batch, _, _, channels = regions.shape
        x = regions.reshape(batch, self.down, self.across, self.rows, self.cols, channels)
        x = x.transpose(2, 3).reshape(batch, self.down * self.rows, self.across * self.cols, channels)
        if self.shift_y or self.shift_x:
            x = x.roll((self.shift_y, self.shift_x), (1, 2))
        return x[:, : self.height, : self.width]

    def region_of_tokens(self, device: torch.device) -> Tensor:
        """Which region each token of the map lies in, by row-major order of both: (N,) integers."""
        row, col = coordinates(self.height, self.width, device)
        down = (row - self.shift_y) % (self.down * self.rows) // self.rows
        across = (col - self.shift_x) % (self.across * self.cols) // self.cols
        return down * self.across + across

    def valid(self, device: torch.device) -> Tensor | None:
        """Which tokens of the regions are the map's own: (R, T) boolean, or None where all are."""
        if not self.is_padded:
            return None
        inside = torch.ones(1, self.height, self.width, 1, device=device)
        return self.split(inside)[0, :, :, 0] > 0


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
