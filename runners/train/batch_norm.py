"""BatchNorm over the batches of several processes on any device, for torch's own SyncBatchNorm refuses CPUs."""

import torch
from torch import Tensor, distributed, nn


def synchronise_batch_norm(model: nn.Module) -> None:
    """Replace every BatchNorm inside a model; parameters and statistics stay the same tensors under the same names."""
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(model, name, SyncedBatchNorm(child))
        else:
            synchronise_batch_norm(child)


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all ranks, which may differ in size."""

    def __init__(self, plain: nn.modules.batchnorm._BatchNorm) -> None:
        """Take over the settings, parameters and statistics of a layer."""
        super().__init__(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        self._parameters, self._buffers = plain._parameters, plain._buffers

    def _check_input_dim(self, input: Tensor) -> None:
        """Take maps of any number of axes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the channels: (B, C, ...) -> (B, C, ...)."""
        if not self.training:
            return super().forward(x)
        dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = _sum_over_ranks(wide.new_full((1,), x.numel() / x.shape[1]))
        # in two passes: the mean square less the squared mean loses digits
        mean = _sum_over_ranks(wide.sum(dims)) / count
        centred = wide - mean.view(shape)
        variance = _sum_over_ranks(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach(), count.item())
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), weight)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        # every rank's loss reads the sum, and so this rank's share of it
        total = grads[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)
    return total
