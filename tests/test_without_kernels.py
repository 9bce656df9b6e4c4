"""The folder of kernels can be deleted; and what is counted is what runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import slow_but
from golden import HOLDING, needs_golden
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import attention_zoo

ROOT = Path(__file__).parents[1]

# None in sys.modules is a module that cannot be imported
ALONE = f"""
import sys
sys.modules["attention_zoo.kernels"] = None
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
"""

EVERY_MECHANISM = """
import torch
from conftest import SETTINGS, _evaluate, _small
import attention_zoo
count = 0
for name in attention_zoo.names():
    for config in SETTINGS.get(name, [{}]):
        for size in ((6, 12), (5, 7)):
            attention, x = _small(name, *size, **config)
            assert attention.impl_on(*size) == "plain", name
            fast, slow = _evaluate(attention, x), _evaluate(attention, x, "reference")
            for part, value in slow.items():
                torch.testing.assert_close(fast[part], value, rtol=1e-9, atol=1e-10)
        count += 1
try:
    attention_zoo.create("bra", dim=12, num_heads=2, regions=2, topk=1, impl="dense")(torch.zeros(1, 4, 4, 12))
except ValueError as error:
    assert "impl=dense" in str(error) and "impl=plain" in str(error)
    print(count, "settings")
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", ALONE + program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_mechanism_runs_without_kernels() -> None:
    count, word = run(EVERY_MECHANISM).split()
    assert int(count) >= 60 and word == "settings"


@needs_golden
def test_parity_holds_without_kernels() -> None:
    program = "from attention_zoo.parity import main; raise SystemExit(main(sys.argv[1:]))"
    assert "0 failed, 0 could not be built" in run(program, *map(str, HOLDING))


class Products(TorchDispatchMode):
    """Record matrix products and convolutions with the shapes that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm", "convolution"):
            self.made.append((name, tuple(result.shape)))
        return result


@pytest.mark.parametrize("name", slow_but("bra", "sliding", of=attention_zoo.names()))
def test_what_is_counted_on_the_meta_device_is_what_runs_on_a_cpu(name: str) -> None:
    model = attention_zoo.create_model("small", attn=name, num_classes=3).eval()
    made = []
    for device in ("cpu", "meta"):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Products() as products:
            model.to(device)(torch.zeros(1, 3, 76, 44, device=device))
        made.append(products.made)
    assert len(made[0]) > 20 and made[0] == made[1]
