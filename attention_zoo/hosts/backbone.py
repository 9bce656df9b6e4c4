"""What timm asks of a model, beside `forward`: intermediate maps, pruning, classifier, parameter groups."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from attention_zoo.layouts import Layout


class Backbone(nn.Module):
    """The methods of timm for a model of stages; the pyramid has the modules that they name."""

    output_fmt: ClassVar[str] = "NHWC"
    """How timm is told that `forward_features` and the stages return (B, H, W, C)."""

    layout: Layout
    downsamples: nn.ModuleList
    stages: nn.ModuleList
    positions: nn.ParameterList
    norm: nn.Module
    head: nn.Module
    checkpointed_stages: frozenset[int]

    def run_stages(self, x: Tensor, taken: list[int], count: int) -> tuple[Tensor, list[Tensor]]:
        """Run the first `count` stages: the last map, and those after the stages `taken`, (B, H, W, C)."""
        raise NotImplementedError

    def init_head(self) -> None:
        """Initialise a new classifier."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps after the stages `indices` (the last n if a number, all if None), and the last of all.

        `norm` applies the final norm to the last stage's among them; `stop_early` runs no stage that is not needed.
        The last map is (B, H, W, C), the others are as `output_fmt` says.

        Raises:
            ValueError: no such stage, or a format other than NCHW and NHWC.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt!r}")
        taken = self._taken(indices)
        x, maps = self.run_stages(x, taken, max(taken) + 1 if stop_early else len(self.stages))
        if norm and len(self.stages) - 1 in taken:
            last, reads_nchw = maps[-1], self.layout.pool == "norm_mean"
            maps[-1] = self.norm(last.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if reads_nchw else self.norm(last)
        if output_fmt == "NCHW":
            maps = [map_.permute(0, 3, 1, 2).contiguous() for map_ in maps]
        return maps if intermediates_only else (x, maps)

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """Stages that timm's kinds of indices mean, counted from 0."""
        count = len(self.stages)
        listed = range(count) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        if not listed or not all(-count <= index < count for index in listed):
            raise ValueError(f"there are {count} stages, 0 to {count - 1}; got indices={indices}")
        return [index % count for index in listed]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what `forward_intermediates` of these stages does not need; return them, counted from 0.

        Raises:
            ValueError: no such stage.
        """
        taken = self._taken(indices)
        count = max(taken) + 1
        if prune_norm or count < len(self.stages):
            self.norm = nn.Identity()
        self.downsamples, self.stages = self.downsamples[:count], self.stages[:count]
        self.positions = self.positions[:count]
        self.layout = replace(self.layout, depths=self.layout.depths[:count], dims=self.layout.dims[:count])
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    @property
    def num_features(self) -> int:
        """Channels of the last map."""
        return self.layout.dims[-1]

    @property
    def head_hidden_size(self) -> int:
        """Channels that the classifier reads."""
        return self.num_features

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride in pixels and module of each stage's map, for timm."""
        return [
            {"num_chs": dim, "reduction": self.layout.stem_px * 2**stage, "module": f"stages.{stage}"}
            for stage, dim in enumerate(self.layout.dims)
        ]

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer, an identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new classifier, none for 0 classes, where the weights are; see `set_global_pool`.

        Raises:
            ValueError: an unknown pooling.
        """
        if global_pool is not None:
            self.set_global_pool(global_pool)
        self.num_classes = num_classes
        weight = next(self.parameters())
        self.head = (
            nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
            if num_classes
            else nn.Identity()
        )
        self.init_head()

    def set_global_pool(self, kind: str) -> None:
        """Choose what the classifier reads: the mean over the map (`avg`), or each of its places (an empty string).

        Raises:
            ValueError: another pooling.
        """
        if kind not in ("avg", ""):
            raise ValueError(f"global_pool must be 'avg' or '', got {kind!r}")
        self.global_pool = kind

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """Recompute each block of the stages (from 0; None: all) in the backward pass instead of keeping its output.

        Raises:
            ValueError: no such stage.
        """
        self.checkpointed_stages = frozenset(self._taken(stages)) if enable else frozenset[int]()

    @property
    def grad_checkpointing(self) -> bool:
        """Whether blocks of some stage are recomputed."""
        return bool(self.checkpointed_stages)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for timm: stem, then stages if `coarse`, blocks otherwise."""
        own = r"^(?:downsamples|positions)"
        blocks = [(rf"{own}\.(\d+)", (0,)), (r"^stages\.(\d+)\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": rf"{own}\.0(?:\.|$)", "blocks": r"^\w+\.(\d+)(?:\.|$)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of learned positions and tables of biases, which have more than one dimension."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith("positions.") or name.rpartition(".")[2] in ("bias_table", "position")
        }
