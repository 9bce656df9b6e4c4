"""From the name of the data to the data: `make_data`."""

from runners.data.datasets import Data, check_data, parse_data
from runners.data.fashion import FashionMnist, find_folder
from runners.data.probes import DigitProbe


def make_data(spec: str, height_px: int, width_px: int, batch_size: int) -> Data:
    """Load the data that a spec names, at a resolution and batch size.

    Raises:
        ValueError: a spec, resolution or batch size that does not fit.
        FileNotFoundError: the dataset is neither installed nor downloadable.
    """
    name, options = parse_data(spec)
    check_data(spec, height_px, width_px)
    if batch_size < 1 or min(height_px, width_px) < 32:
        raise ValueError(
            f"data {spec!r} needs a batch of at least 1 and sides of at least 32 px, "
            f"got batch {batch_size} at {height_px}x{width_px} px"
        )
    if name == "fashion-mnist":
        return FashionMnist(find_folder(), height_px, width_px, batch_size)
    return DigitProbe(
        name,
        height_px,
        width_px,
        batch_size,
        jitter_px=options.get("jitter", 0),
        noise=options.get("noise", 0.05),
    )
