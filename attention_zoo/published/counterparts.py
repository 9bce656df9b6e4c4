"""From the configuration of a published class to our module: every argument is mapped, refused or known to be moot."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from attention_zoo.base import Attention
from attention_zoo.config import AttentionConfig
from attention_zoo.mechanisms import bra, crossformer, cswin, dat, maxvit, swin, vanilla
from attention_zoo.published.name_maps import Official

Arguments = Mapping[str, Any]
Size = tuple[int, int]

# what decides nothing in evaluation, or how something is computed and not what
MOOT = {
    *("attn_drop", "proj_drop", "drop", "drop_path", "drop_rate", "attn_drop_rate", "drop_path_rate", "norm_layer"),
    *("act_layer", "use_checkpoint", "use_checkpoint_stages", "fused_window_process", "attn_backend", "norm_eps"),
    *("num_patch_size", "impl_type", "mlp_ratio", "expand_ratio", "init_values", "use_chk", "hybrid_backbone"),
    *("kv_downsample_kernel", "kv_downsample_kernels", "input_resolution", "reso", "patches_resolution"),
}


class Reader:
    """Arguments of an official constructor, each to be read once.

    Raises:
        ValueError: (by `done`) arguments that nobody read and that are not moot; (by `only`) a value we do not have.
    """

    def __init__(self, official: str, arguments: Arguments) -> None:
        """Start with none read."""
        self.official, self.arguments, self.read = official, arguments, set[str]()

    def __call__(self, name: str, default: Any = None) -> Any:
        """Read an argument."""
        self.read.add(name)
        return self.arguments.get(name, default)

    def only(self, name: str, *allowed: Any) -> None:
        """Read an argument that we have for some values only; the first is the official default."""
        value = self(name, allowed[0])
        if value not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise ValueError(f"{self.official}: {name}={value!r} has no counterpart; known: {listed}")

    def build(self, make: Callable[[], "Built"]) -> "Built":
        """Build, wording what goes wrong, and check that nothing was overlooked.

        Raises:
            ValueError: arguments that are missing, cannot be read or have no counterpart.
        """
        try:
            built = make()
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{self.official}: {dict(self.arguments)} cannot be read: {error!r}") from error
        self.done()
        return built

    def done(self) -> None:
        """Check that nothing was overlooked."""
        left = set(self.arguments) - self.read - MOOT
        if left:
            listed = ", ".join(f"{name}={self.arguments[name]!r}" for name in sorted(left))
            raise ValueError(f"{self.official}: no counterpart of {listed}")


Built = tuple[nn.Module, Official]


def counterpart(official: str, config: Arguments) -> Built:
    """Build our module for an official class and its configuration: {"ctor": arguments, "H": ..., "W": ...}.

    Raises:
        ValueError: an unknown class, or arguments without a counterpart.
    """
    if official not in _MIXERS:
        raise ValueError(f"no counterpart of {official!r}; known: {', '.join(sorted(_MIXERS))}")
    read = Reader(official, {**config.get("ctor", {}), **config.get("cfg", {})})
    size = (config["H"], config["W"]) if "H" in config else None
    return read.build(lambda: _MIXERS[official](read, size))


def _build(cls: Callable[..., Attention], dim: int, num_heads: int, config: AttentionConfig) -> Attention:
    return cls(dim, num_heads, config)


def lepe_fields(kernel: int) -> dict[str, Any]:
    """LePE of this kernel; 0 is none."""
    return {"lepe": True, "lepe_kernel": kernel} if kernel else {"lepe": False}


def _vanilla(read: Reader, size: Size | None) -> Built:
    kind = read.official
    lepe = lepe_fields(read("side_dwconv", 5)) if kind.endswith("LePE") else {}
    config = vanilla.VanillaConfig(
        qkv_bias=read("qkv_bias", False),
        qk_scale=read("qk_scale"),
        lepe_input="x" if kind == "vanilla.AttentionLePE" else "v",
        **lepe,
    )
    return _build(vanilla.Vanilla, read("dim"), read("num_heads", 8), config), Official(kind, size)


def _swin(read: Reader, size: Size | None) -> Built:
    window, shift = read("window_size", 7), read("shift_size", 0)
    if read.official == "swin.WindowAttention":
        window = _pair(window)
    elif size is not None and min(size) <= window:
        # the code clamps both sides by the shorter one
        window, shift = min(size), 0
    config = _windows(window, shift, qkv_bias=read("qkv_bias", True), qk_scale=read("qk_scale"))
    return _build(swin.Swin, read("dim"), read("num_heads"), config), Official(read.official, size)


def _windows(window: int | Size, shift: int, **fields: Any) -> swin.SwinConfig:
    return swin.SwinConfig(window=window, shift=shift, padding="official", **fields)


def _pair(sides: int | list[int]) -> Size:
    rows, cols = (sides, sides) if isinstance(sides, int) else sides
    return rows, cols


def _dat_windows(read: Reader, size: Size | None) -> Built:
    # the code shifts a side that is one window too
    config = _windows(_pair(read("window_size")), read("shift_size", 0), shift_whole=True)
    return _build(swin.Swin, read("dim"), read("heads"), config), Official(read.official, size)


def _cswin(read: Reader, size: Size | None) -> Built:
    assert size is not None
    segmentation = "seg" in read.official
    split, is_last, heads = read("split_size", 7), read("last_stage", False), read("num_heads")
    is_one = is_last or (not segmentation and split == size[0])
    config = cswin.CSWinConfig(
        stripe=max(size) if is_last else split,
        clip_stripe=is_last,
        # the segmentation code ignores the argument
        qkv_bias=read("qkv_bias", segmentation) or segmentation,
        qk_scale=read("qk_scale"),
        padding="official" if segmentation else "error",
    )
    about = Official(read.official, size, branches=1 if is_one else 2)
    # two branches leave an odd head out
    return _build(cswin.CSWin, read("dim"), heads if is_one else heads // 2 * 2, config), about


def _crossformer(read: Reader, size: Size | None) -> Built:
    assert size is not None
    read("use_extra_conv")  # it follows the attention, which is all that a case of a block holds
    config = crossformer_groups(
        read("group_size", 7), read("interval", 8), bool(read("lsda_flag", 0)), size, read("pad_type", 0)
    )
    config = config.replace(qkv_bias=read("qkv_bias", True), qk_scale=read("qk_scale"))
    return _build(crossformer.CrossFormer, read("dim"), read("num_heads"), config), Official(read.official, size)


def crossformer_groups(
    group: int, interval: int, is_long: bool, size: Size, pad_type: int
) -> crossformer.CrossFormerConfig:
    """Groups on a map of this size, and which of the two turns it is."""
    if min(size) <= group:
        # the code clamps both sides by the shorter one, and has no intervals then
        group, is_long = min(size), False
    return crossformer.CrossFormerConfig(
        group=group,
        interval=interval,
        kind="long" if is_long else "short",
        padding="official",
        pad_side="center" if pad_type else "end",
    )


def _maxvit(read: Reader, size: Size | None) -> Built:
    kind = read("partition_type", "block")
    # without a grid of its own the window's size is taken
    window = read("window_size") if kind == "block" else read("grid_size") or read("window_size")
    for name in ("window_size", "grid_size"):
        read(name)
    config = maxvit_partition(_pair(window), kind, read("auto_pad", False))
    read.only("attn_bias", True)
    dim, head_dim = read("dim"), read("dim_head", 32)
    tf_table = read("rel_pos_type", "bias") == "bias_tf"
    read.only("rel_pos_type", "bias", "bias_tf")
    about = Official(read.official, size, heads_first=read("head_first", True), tf_table=tf_table)
    return _build(maxvit.MaxViT, dim, dim // head_dim, config), about


def maxvit_partition(window: Size, kind: Any, auto_pad: bool) -> maxvit.MaxViTConfig:
    """Blocks or grids of this window."""
    return maxvit.MaxViTConfig(window=window, kind=kind, padding="official" if auto_pad else "error")


def _dat(read: Reader, size: Size | None) -> Built:
    assert size is not None
    is_2022 = read.official.startswith("dat_v1.")
    kernel = dat.KERNELS[read("stage_idx")] if is_2022 else read("ksize")
    for name in ("q_size", "kv_size", "sr_ratio"):
        read(name)
    heads = read("n_heads")
    config = dat.DATConfig(
        variant="2022" if is_2022 else "2023",
        kernel=kernel,
        groups=read("n_groups"),
        stride=read("stride"),
        map_size=size,
        **dat_options(is_2022, read("offset_range_factor"), read("no_off", False), *_dat_position(read)),
    )
    return _build(dat.DAT, heads * read("n_head_channels"), heads, config), Official(read.official, size)


def _dat_position(read: Reader) -> tuple[bool, Any]:
    # in the order in which the code asks
    kinds = {"dwc_pe": "dwc", "fixed_pe": "fixed", "log_cpb": "log"}
    found = [ours for official, ours in kinds.items() if read(official, False)]
    return read("use_pe", False), (found or ["rpb"])[0]


def dat_options(is_2022: bool, factor: float, no_offsets: bool, has_position: bool, position: Any) -> dict[str, Any]:
    """What bounds the offsets, and the position term, which pooled keys never have."""
    unbounded = "unbounded" if factor < 0 else "free" if factor == 0 and is_2022 else None
    return {
        "offset_range": unbounded or float(factor),
        "offsets": not no_offsets,
        "position": position if has_position and not no_offsets else "none",
    }


def _bra(read: Reader, size: Size | None) -> Built:
    if read.official == "bra.nchwBRA":
        variant: dict[str, Any] = {"variant": "nchw", "padding": "official"}
        read("auto_pad")  # the code always pads
    else:
        variant = {"padding": "official" if read("auto_pad", False) else "error", **_routing(read)}
    read.only("param_attention", "qkvo", "qkv")
    config = bra.BRAConfig(
        regions=read("n_win", 7),
        topk=read("topk", 4),
        qk_dim=read("qk_dim"),
        qk_scale=read("qk_scale"),
        impl="gather",
        **lepe_fields(read("side_dwconv", 3)),
        **variant,
    )
    module = _build(bra.BRA, read("dim"), read("num_heads", 8), config)
    if read("param_attention", "qkvo") == "qkv":
        module.proj = nn.Identity()
    return module, Official(read.official, size)


def _routing(read: Reader) -> dict[str, Any]:
    names = ("soft_routing", "diff_routing", "param_routing")
    return {**{name: read(name, False) for name in names}, **pooling(read, read("kv_per_win", 4))}


def pooling(read: Reader, per_window: int | None, stage: int | None = None) -> dict[str, Any]:
    """Read how keys and values are pooled; in a model the ratio is one of a list."""
    # the model's constructor has another default than the mixer's
    mode = read("kv_downsample_mode", "identity" if stage is None else "ada_avgpool")
    ratio = read("kv_downsample_ratio", 4) if stage is None else (read("kv_downsample_ratios") or [4, 2, 1, 1])[stage]
    if mode not in ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool"):
        raise ValueError(f"{read.official}: kv_downsample_mode={mode!r} has no counterpart")
    pool = {"kv_pool": "max" if "max" in mode else "avg"}
    if mode.startswith("ada_"):
        return {**pool, "kv_per_side": per_window}
    return {**pool, "kv_ratio": ratio} if mode != "identity" and ratio > 1 else {}


_MIXERS: dict[str, Callable[[Reader, Size | None], Built]] = {
    "vanilla.Attention": _vanilla,
    "vanilla.AttentionLePE": _vanilla,
    "vanilla.nchwAttentionLePE": _vanilla,
    "swin.WindowAttention": _swin,
    "swin.SwinTransformerBlock.attn": _swin,
    "cswin.CSWinBlock.attn": _cswin,
    "cswin.seg.CSWinBlock.attn": _cswin,
    "crossformer.CrossFormerBlock.attn": _crossformer,
    "maxvit.PartitionAttentionCl": _maxvit,
    "maxvit.PartitionAttention2d": _maxvit,
    "dat.DAttentionBaseline": _dat,
    "dat_v1.DAttentionBaseline": _dat,
    "dat_v1.LocalAttention": _dat_windows,
    "dat_v1.ShiftWindowAttention": _dat_windows,
    "bra.BiLevelRoutingAttention": _bra,
    "bra.nchwBRA": _bra,
}
