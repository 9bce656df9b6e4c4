"""Knowledge distillation from a teacher, as DeiT distils (arXiv:2012.12877, section 4).

Paper -> here, of one image: logits of the student Z_s and of the teacher Z_t, softmax psi, label y, temperature tau.
    soft, eq. 2:  (1 - lambda) CE(psi(Z_s), y) + lambda tau^2 KL(psi(Z_s / tau), psi(Z_t / tau))
    hard, eq. 3:  1/2 CE(psi(Z_s), y) + 1/2 CE(psi(Z_s), y_t),  y_t = argmax_c Z_t(c)
    lambda -> distillation_alpha, which weighs both kinds, as DeiT's code has it

The teacher sees the images that the student sees, cut, changed and mixed; it is in evaluation mode and learns nothing.

Departures. DeiT's best models have a distillation token, whose own classifier learns from the teacher; our models have
none, and the logits of the classes get both losses. DeiT compares its token with this. KL is that of the student from
the teacher, summed over classes and averaged over images, as eq. 2 says; DeiT's code divides by the number of classes
too (its issue 61), so its lambda weighs the teacher less. DeiT's smoothed hard labels are not here.
"""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def soft_distillation(logits: Tensor, taught: Tensor, tau: float) -> Tensor:
    """Second term of eq. 2 without lambda: logits of the student and of the teacher, (B, C), to a mean over images."""
    student, teacher = (F.log_softmax(z / tau, dim=1) for z in (logits, taught))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * tau**2


def hard_distillation(logits: Tensor, taught: Tensor) -> Tensor:
    """Second term of eq. 3 without its half: the class that the teacher decides for is a label."""
    return F.cross_entropy(logits, taught.argmax(dim=1))


def as_teacher(teacher: nn.Module) -> nn.Module:
    """Make a model a teacher, in place: in evaluation mode, and without gradients."""
    return teacher.eval().requires_grad_(False)


def weights_hash(model: nn.Module) -> str:
    """Hash of a model's weights, 16 hex digits: another teacher is another training."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\n".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]
