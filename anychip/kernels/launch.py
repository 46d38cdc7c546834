"""How a kernel's host function starts it, whatever the chip: the Launcher protocol, and Triton's own launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from ..errors import KernelError

Family = Literal["cuda", "ascend"]


class Launcher(Protocol):
    """Starts one `@triton.jit` function over a grid and returns when later launches may use what it wrote.

    Host functions take a launcher as their first argument and ask it only for `family` and the core counts, to
    choose tiles and the number of programs. A launcher never allocates: outputs are tensors among `args`.
    """

    @property
    def family(self) -> Family:
        """`cuda` or `ascend`: what the tiles should suit."""

    @property
    def num_cube(self) -> int:
        """Cores that multiply matrices (AIC on Ascend, streaming multiprocessors on NVIDIA)."""

    @property
    def num_vector(self) -> int:
        """Cores that do everything else (AIV on Ascend, streaming multiprocessors on NVIDIA)."""

    @property
    def keeps_zeros(self) -> bool:
        """Whether its compiler keeps the zeros of a masked tile that is then turned (tl.trans). 950's does not."""

    def __call__(self, fn: Any, grid: tuple[int, ...], args: dict[str, Tensor | int | float],
                 constants: dict[str, Any], *, warps: int = 4, stages: int = 2) -> None:
        """Run `fn` over `grid` (1-3 dims) with run-time `args` by name, in signature order, and constexpr `constants`.

        Tensors are contiguous, or their strides are among the arguments; ints are passed as i32, floats as fp32.
        `warps` and `stages` matter on NVIDIA alone. Outputs are written in place. An empty grid does nothing.
        Raises KernelError for a kernel that does not compile or run on the chip.
        """


@dataclass(frozen=True)
class TritonLauncher:
    """Triton's own launch: on NVIDIA, on Ascend through triton_ascend, and in Triton's interpreter on the host."""

    family: Family
    num_cube: int
    num_vector: int
    keeps_zeros: bool = True

    def __call__(self, fn: Any, grid: tuple[int, ...], args: dict[str, Tensor | int | float],
                 constants: dict[str, Any], *, warps: int = 4, stages: int = 2) -> None:
        if 0 in grid:
            return
        options = {"num_warps": warps, "num_stages": stages} if self.family == "cuda" else {}
        try:
            fn[grid](**args, **constants, **options)
        except Exception as error:
            if type(error).__name__ not in ("OutOfResources", "CompilationError"):
                raise
            raise KernelError(f"kernel {fn.__name__!r} cannot run on this device: {error}") from error
