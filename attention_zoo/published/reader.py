"""The arguments of a published class: each is read, ignored for a reason, or refused."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Arguments = Mapping[str, Any]
Size = tuple[int, int]
_T = TypeVar("_T")

MODEL_MOOT = frozenset(
    {
        # dropout, which evaluation leaves out
        *("drop", "attn_drop", "proj_drop", "drop_path", "drop_rate", "attn_drop_rate", "drop_path_rate"),
        # how something is computed, not what
        *("use_checkpoint", "use_checkpoint_stages", "use_chk", "fused_window_process", "attn_backend", "impl_type"),
        # accepted by the published code and never read
        *("hybrid_backbone", "kv_downsample_kernel", "kv_downsample_kernels"),
    }
)
"""Arguments of a published model that do not change its output."""

MIXER_MOOT = MODEL_MOOT | {
    # what the block around the token mixer is made of
    *("norm_layer", "norm_eps", "act_layer", "mlp_ratio", "expand_ratio", "init_values", "num_patch_size"),
    # the size of the map, which a case gives as H and W
    *("input_resolution", "reso", "patches_resolution"),
}
"""Arguments that do not change the output of a token mixer cut out of its block."""


class NotAMixer(ValueError):
    """Arguments by which a published class changes the size of the map or its channels, which no token mixer does."""


class Reader:
    """Arguments of an official constructor: `read(name, default)` is an optional one, `read[name]` a required one.

    `config` is {"ctor": arguments, "cfg": more of them, "H": ..., "W": ...}; `moot` arguments need not be read.
    """

    def __init__(self, official: str, config: Mapping[str, Any], moot: frozenset[str]) -> None:
        """Take a configuration, none of it read."""
        self.official, self._config, self._used = official, config, set(moot)
        self.arguments: Arguments = {**config.get("ctor", {}), **config.get("cfg", {})}

    @property
    def size(self) -> Size:
        """Height and width of the input: tokens of a token mixer, pixels of a model.

        Raises:
            ValueError: they are not given.
        """
        if not {"H", "W"} <= set(self._config):
            raise ValueError(f"{self.official} depends on the size of its input: give H and W")
        return self._config["H"], self._config["W"]

    def __call__(self, name: str, default: Any = None) -> Any:
        """Read an argument that the official constructor has a default for."""
        self._used.add(name)
        return self.arguments.get(name, default)

    def __getitem__(self, name: str) -> Any:
        """Read an argument that must be given; `build` words the KeyError if it is not."""
        self._used.add(name)
        return self.arguments[name]

    def only(self, name: str, *allowed: Any, default: Any = None) -> Any:
        """Read an argument of which the zoo has these values; the first is the default unless one is given.

        Raises:
            ValueError: another value.
        """
        value = self(name, allowed[0] if default is None else default)
        if value not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise ValueError(f"{self.official}: {name}={value!r} has no counterpart; known: {listed}")
        return value

    def ignore(self, *names: str) -> None:
        """Accept arguments that do not change the output of this class."""
        self._used.update(names)

    def build(self, make: Callable[["Reader"], _T]) -> _T:
        """Return what `make` builds of the arguments.

        Raises:
            ValueError: arguments that are missing, cannot be read or have no counterpart.
        """
        try:
            built = make(self)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{self.official}: {dict(self.arguments)} cannot be read: {error!r}") from error
        unread = sorted(set(self.arguments) - self._used)
        if unread:
            listed = ", ".join(f"{name}={self.arguments[name]!r}" for name in unread)
            raise ValueError(f"{self.official}: no counterpart of {listed}")
        return built
