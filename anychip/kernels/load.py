"""A user's Python file with kernels, run as a module; what goes wrong in it is one error with its line."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError, KernelError, NotSupported


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own; it may import its neighbours, as a script does.

    Raises InputError, KernelError and NotSupported as `find_kernels` does.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    name = f"anychip_user_{path.stem}_{zlib.crc32(bytes(path.resolve())):x}"  # two files of one name are two modules
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look the module up while it runs
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with _tunable():
            spec.loader.exec_module(module)
    except SyntaxError as error:
        raise KernelError(f"{path}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}") from error
    except ModuleNotFoundError as error:
        what = "anychip[ascend]" if error.name == "triton" else error.name
        raise NotSupported(f"{path} imports {error.name}, which is not installed: pip install '{what}'") from error
    except (InputError, NotSupported):
        raise
    except Exception as error:
        raise KernelError(f"{path} does not run: line {_line(error, path)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module


def _line(error: BaseException, path: Path) -> str:
    """The last line of the file that an error's traceback names."""
    lines = [f.lineno for f in inspect.getinnerframes(error.__traceback__) if Path(f.filename) == path] \
        if error.__traceback__ else []
    return str(lines[-1]) if lines else "unknown"


class _NoChip:
    """Stands for Triton's driver while a file loads: @triton.autotune asks it for a benchmark when it is applied."""

    def get_benchmarker(self) -> Callable[..., Any]:
        """Return what autotune would time its choices with: here it refuses."""
        def refuse(*args: object, **named: object) -> None:
            raise NotSupported("@triton.autotune times its choices on a chip, and there is none here; an example's "
                               "constants say which choice is checked")

        return refuse


@contextmanager
def _tunable() -> Iterator[None]:
    """Let a file use @triton.autotune where no chip is."""
    has_npu = importlib.util.find_spec("torch_npu") is not None
    is_ascend = importlib.util.find_spec("triton") and importlib.util.find_spec("triton.backends.ascend")
    if has_npu or not is_ascend:  # upstream's autotune asks only when it is called
        yield
        return
    from triton.runtime import driver

    driver.set_active(_NoChip())
    try:
        yield
    finally:
        driver.reset_active()
