"""Checks of what a mechanism takes: types, views, devices, batches, and queries of its connectivity and weights."""

import torch
from torch import Tensor

from attention_zoo.base import Attention
from attention_zoo.check.subject import (
    Failed,
    NotApplicable,
    Subject,
    describe,
    evaluate,
    on,
    require_close,
    require_connectivity,
)


def keeps_shape_and_dtype(subject: Subject) -> None:
    """The output is like the input, and float32 gives what float64 gives."""
    for size in subject.sizes:
        attention, x = subject.build(), subject.images(size)
        exact = attention(x)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            attention, x = attention.to(dtype), x.to(dtype)
            try:
                y = returned(attention, x, "forward")
            except RuntimeError as error:
                raise Failed(f"in {dtype} {on(size)}: {error} (make tensors in x.dtype and on x.device)") from error
            if dtype == torch.float32:
                found, expected = {"output": y.double()}, {"output": exact}
                require_close(found, expected, f"float32 and float64 differ {on(size)}", rtol=1e-4, atol=1e-4)
        returned(subject.build(), subject.images(size), "reference")


def returned(attention: Attention, x: Tensor, method: str) -> Tensor:
    """What `method` returns of x.

    Raises:
        Failed: it is not like x.
    """
    y = attention(x) if method == "forward" else attention.reference(x)
    if describe(y) != describe(x):
        raise Failed(f"{method} must return {describe(x)} as it is given, got {describe(y)}")
    return y


def connectivity_takes_queries(subject: Subject) -> None:
    """Connectivity is boolean, leaves each token a key, and of some queries gives those rows of the whole."""
    require_connectivity(subject)
    for size in subject.sizes:
        attention, x = subject.build(), subject.images(size)
        tokens = size[0] * size[1]
        queries = torch.tensor([tokens - 1, 0, tokens // 2, 0])
        whole, some = attention.connectivity(x), attention.connectivity(x, queries)
        if {whole.dtype, some.dtype} != {torch.bool}:
            raise Failed(f"connectivity must be boolean, got {whole.dtype} and {some.dtype}")
        whole = whole.broadcast_to(len(x), attention.num_heads, tokens, tokens)
        some = some.broadcast_to(len(x), attention.num_heads, len(queries), tokens)
        if not torch.equal(some, whole[:, :, queries]):
            raise Failed(f"connectivity(x, queries) is not connectivity(x)[:, :, queries] {on(size)}")
        if not whole.any(-1).all():
            raise Failed(f"by connectivity a token reads nothing {on(size)}")


def weights_take_queries(subject: Subject) -> None:
    """Weights are none below 0, and of some queries are those rows of the whole."""
    methods = [method for base in subject.cls.__mro__ for method in ("weights", "reference") if method in vars(base)]
    if methods[0] == "reference":
        raise NotApplicable("its reference is its own; pictures of attention need weights(x, queries) and values(x)")
    for size in subject.sizes:
        attention, x = subject.build(), subject.images(size)
        tokens = size[0] * size[1]
        queries = torch.tensor([tokens - 1, 0, tokens // 2, 0])
        with torch.no_grad():
            whole, some = attention.weights(x), attention.weights(x, queries)
        if whole.shape[:3] != (len(x), attention.num_heads, tokens):
            raise Failed(f"weights must be (B, heads, queries, keys), got {describe(whole)} {on(size)}")
        if (whole < 0).any():
            raise Failed(f"weights below 0 {on(size)}")
        require_close({"weights": some}, {"weights": whole[:, :, queries]}, f"weights(x, queries) {on(size)}")


def images_do_not_mix(subject: Subject) -> None:
    """An image gives the same alone as in a batch, its connectivity too; a batch of none gives none."""
    size = subject.sizes[-1]
    attention, x = subject.build(), subject.images(size)
    with torch.no_grad():
        together, alone = attention(x), torch.cat([attention(image[None]) for image in x])
    require_close({"output": together}, {"output": alone}, "images of a batch mix", rtol=0, atol=1e-12)
    if subject.cls.connectivity is Attention.connectivity:
        return
    tokens = size[0] * size[1]
    whole = attention.connectivity(x).expand(len(x), -1, tokens, tokens)
    if not torch.equal(whole, torch.cat([attention.connectivity(image[None]) for image in x]).expand_as(whole)):
        raise Failed("the connectivity of an image is another one alone than in a batch")


def takes_no_images(subject: Subject) -> None:
    """A batch of no images gives a batch of none."""
    x = subject.images(subject.sizes[0], batch=0)
    try:
        y = subject.build()(x)
    except RuntimeError as error:
        raise Failed(f"{error} (give a reshape the size instead of -1)") from error
    if y.shape != x.shape:
        raise Failed(f"a batch of 0 images gives {tuple(y.shape)}, expected {tuple(x.shape)}")


def takes_views(subject: Subject) -> None:
    """A view of a channels-first map, which is not contiguous, gives the same."""
    attention, x = subject.build(), subject.images(subject.sizes[-1])
    view = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    with torch.no_grad():
        found, expected = {"output": attention(view)}, {"output": attention(x)}
    require_close(found, expected, "a map that is not contiguous", rtol=0, atol=1e-12)


def runs_on_meta(subject: Subject) -> None:
    """Forward, backward and connectivity run on the meta device, where tensors have shapes and no numbers."""
    for size in subject.sizes:
        attention, x = subject.build().to("meta"), subject.images(size).to("meta")
        try:
            y = attention(x)
            y.sum().backward()
            devices = {"forward": y.device.type}
            if subject.cls.connectivity is not Attention.connectivity:
                devices["connectivity"] = attention.connectivity(x).device.type
        except (RuntimeError, NotImplementedError) as error:
            raise Failed(
                f"on the meta device: {error} (no step may depend on the numbers of a tensor, as item, nonzero and "
                "masks as indices do, and tensors must be made on x.device)"
            ) from error
        if wrong := [name for name, device in devices.items() if device != "meta"]:
            raise Failed(f"{' and '.join(wrong)} of a map on the meta device must be there: make tensors on x.device")


def runs_under_autocast(subject: Subject) -> None:
    """Under autocast to bfloat16 output and gradients stay finite."""
    for size in subject.sizes:
        attention, x = subject.build().float(), subject.images(size).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = evaluate(attention, x, attention)
        if wrong := [name for name, value in values.items() if not value.isfinite().all()]:
            raise Failed(f"under autocast to bfloat16, {on(size)}: {', '.join(wrong)} not finite")
