"""Other ways to compute what a mechanism computes; without this folder all of them run the plain way, only slower.

A kernel is a function of q, k, v and of what tells who reads whom. It imports no mechanism, and
`attention_zoo.dispatch` alone imports it. What one gains: copy the tree, delete this folder there, and run
`python -m benchmarks.versus COPY`.
"""

from collections.abc import Callable

from torch import Tensor

from attention_zoo.kernels.dense import dense_attention
from attention_zoo.kernels.flex import flex_attention_along_routes
from attention_zoo.kernels.tiles import attend_in_tiles

BY_NAME: dict[str, Callable[..., Tensor]] = {
    "dense": dense_attention,
    "flex": flex_attention_along_routes,
    "tiles": attend_in_tiles,
}
