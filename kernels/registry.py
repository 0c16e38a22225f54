"""What a table of `launch` may name beside kernels: size classes of rows, and switches (see switches.py)."""

from typing import NamedTuple

# Upper bounds of rows; above the last one a size is "large". In pairs of 211 tokens: 2, 19, 116 and more.
BUCKETS = {"tiny": 512, "small": 4096, "medium": 24576}
CLASSES = (*BUCKETS, "large")

EVERYWHERE = ("sm80", "sm90", "sm100", "gfx942", "interpreter")
NVIDIA = ("sm80", "sm90", "sm100", "interpreter")  # more than 64 KB of shared memory for a program
HOPPER = ("sm90", "sm100", "interpreter")  # programmatic launch and tensor descriptors


class Switch(NamedTuple):
    """One choice."""

    operations: tuple[str, ...]  # whose kernels it changes
    families: tuple[str, ...]  # where it can be on, see `launch.family`
    about: str  # what it does, for tables
    is_exact: bool  # whether results are the same bits with it and without
    by_bucket: bool = False  # whether a table may choose it for one size class: its launchers ask by that
    by: tuple[str, ...] = ("N", "K", "dtype")  # what else a table may choose it by

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that an entry of a table may have."""
        return (*self.by, "bucket") if self.by_bucket else self.by


SWITCHES = {
    "pdl": Switch(
        ("linear", "layer_norm", "attention"),
        HOPPER,
        "a kernel of a block starts while the one before it ends",
        True,
        True,
    ),
    "fold_norm": Switch(
        ("linear", "layer_norm"),
        EVERYWHERE,
        "LayerNorm as part of the next product; 16-bit frozen models",
        False,
        by=(),
    ),
    "resident": Switch(
        ("attention",),
        NVIDIA,
        "K and V of a (span, head) stay in shared memory: heads of <= 64 in 16 bits",
        False,
        by=("N", "dtype"),
    ),
    "span_list": Switch(
        ("attention",),
        EVERYWHERE,
        "programs of attention by a list made once a batch; frozen models",
        True,
        True,
        by=("N", "dtype"),
    ),
    "shared_bytes": Switch(
        ("patch_embed",),
        ("sm80", "sm90", "gfx942", "interpreter"),  # it spills on sm100
        "256 columns share a conversion of bytes, not 128; patches of 16, 32, 48 or 64 pixels, 16 bits",
        True,
    ),
}
