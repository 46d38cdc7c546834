"""`anychip serve`: any checkpoint over HTTP, on any chip."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NotSupported
from .terminal import progress_bar

if TYPE_CHECKING:
    from ..serve.api.log import Log
    from ..serve.api.settings import ApiSettings
    from ..serve.external import Degrees

_READY_S = 3600.0  # a large checkpoint is read for a long time
_NEEDS = ("fastapi", "uvicorn", "prometheus_client", "httpx")


def serve(
    model: Annotated[str, typer.Argument(help="nano, or the folder of a checkpoint or a training run.")] = "nano",
    chip: Annotated[str, typer.Option(help="A name that `anychip chips` lists.")] = "cpu",
    host: Annotated[str, typer.Option(help="The address to listen on; others than loopback need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    name: Annotated[str, typer.Option(help="The model's name in the API; the folder's name if not given.")] = "",
    api_key_file: Annotated[Path | None, typer.Option(help="TOML: keys and their limits, see docs/api.md.")] = None,
    without_keys: Annotated[bool, typer.Option(help="Serve anyone, also beyond loopback.")] = False,
    cors_origin: Annotated[list[str] | None, typer.Option(help="A web origin that may read answers.")] = None,
    thinking: Annotated[bool, typer.Option(help="Reason where a request does not say.")] = False,
    chat_format: Annotated[str, typer.Option(help="DeepSeek-V4: preview, or 0731 for later checkpoints.")] = "preview",
    max_batch: Annotated[int, typer.Option(help="Answers made at once.")] = 32,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; beyond: 429.")] = 512,
    cache_tokens: Annotated[int, typer.Option(help="Tokens the cache holds, of all sequences together.")] = 65536,
    speculate: Annotated[bool, typer.Option(help="Draft with the MTP block: the same tokens, sooner.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="The longest answer; None: the context.")] = None,
    timeout_s: Annotated[float, typer.Option(help="The longest a request may take.")] = 600,
    drain_s: Annotated[float, typer.Option(help="On SIGTERM: time for answers in flight.")] = 30,
    engine: Annotated[str, typer.Option(help="embedded, vllm or vllm-ascend.")] = "embedded",
    num_chips: Annotated[int, typer.Option(min=1, help="vllm, vllm-ascend: chips that share the model.")] = 1,
    conform: Annotated[bool, typer.Option(help="Judge the engine by `anychip conform` before serving.")] = False,
) -> None:
    """Serve a model over HTTP: OpenAI's and Anthropic's dialects, metrics, and a page to chat with.

    Example: [bold]anychip serve nano --port 8000[/bold], then open http://127.0.0.1:8000
    """
    require_serving()
    from ..chat import chat_format as format_of
    from ..chips import open_chip
    from ..serve.api.app import make_app
    from ..serve.api.keys import Keys, read_keys
    from ..serve.api.log import Log
    from ..serve.api.server import bind
    from ..serve.api.server import serve as run
    from ..serve.api.settings import ApiSettings, check_exposure, served_hosts
    from ..serve.engine import Engine
    from ..serve.models import open_model
    from ..serve.settings import EngineSettings

    keys = read_keys(api_key_file) if api_key_file else Keys()
    check_exposure(host, keys, without_keys)
    settings = ApiSettings(name or Path(model).name, chip=chip, thinking=thinking, keys=keys,
                           hosts=served_hosts(host), origins=tuple(cors_origin or ()), max_new_tokens=max_new_tokens,
                           timeout_s=timeout_s, drain_s=drain_s)
    sizes = EngineSettings(max_batch=max_batch, max_pass_tokens=max(512, 2 * max_batch), max_queue=max_queue,
                           cache_tokens=cache_tokens, speculate=speculate)
    if engine != "embedded":
        _serve_external(engine, Path(model), num_chips, bind(host, port), settings, conform)
        return
    listening, device, log = bind(host, port), open_chip(chip), Log()
    with progress_bar("loading the model") as advance:
        network, tokenizer = open_model(model, device, progress=lambda done, total: advance(done, total, "bytes"))
    own_format = format_of(network.config.family, template=tokenizer.chat_template, specials=tokenizer.specials,
                           release=chat_format)
    settings = replace(settings, chat=own_format)
    with Engine.start(network, device, tokenizer, sizes) as own:
        run(make_app(own, settings, log), own, listening, settings, log)


def _serve_external(engine: str, folder: Path, num_chips: int, listening: socket.socket, settings: ApiSettings,
                    conform: bool) -> None:
    """Start vLLM for the chips and serve what it answers; with `conform`, only where it answers rightly."""
    from ..serve.api.log import Log
    from ..serve.api.proxy import make_proxy
    from ..serve.api.server import bind
    from ..serve.api.server import serve as run
    from ..serve.external import EngineProcess, plan_engine

    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    log = Log()
    degrees = _degrees(folder, settings.chip, num_chips, log)
    external = plan_engine(engine, folder, settings.model, settings.chip, degrees, port)
    log.event("engine", command=" ".join(external.command), weight_share=external.weight_share, kind="calculated")
    if conform:
        _judge(engine, degrees, port, settings)
    with EngineProcess(external, port) as process:
        process.wait_ready(_READY_S)
        run(make_proxy(process.url, settings, log), None, listening, settings, log)


def _degrees(folder: Path, chip: str, num_chips: int, log: Log) -> Degrees:
    """Ask the planner; where it cannot say, share every sequence's attention over all chips, and log why."""
    from ..errors import AnychipError
    from ..plan.engine import plan_tensor
    from ..serve.external import Degrees

    if num_chips == 1:
        return Degrees()
    try:
        plan = plan_tensor(folder, chip, num_chips)
    except AnychipError as error:
        log.event("layout", tensor=num_chips, data=1, kind="rule", reason=str(error))
        return Degrees(num_chips)
    tensor = plan.serving.tensor
    log.event("layout", tensor=tensor, data=num_chips // tensor, kind="simulated", tokens_per_s=plan.tokens_per_s)
    return Degrees(tensor, num_chips // tensor)


def _judge(engine: str, degrees: Degrees, port: int, settings: ApiSettings) -> None:
    """Start the engine on conform's small golden weights, on as many chips, and exit with 1 where it fails."""
    from ..serve.external import EngineProcess, plan_engine

    tool = [sys.executable, "-m", "anychip", "conform"]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "golden"
        subprocess.run([*tool, "--export", str(folder), "--weights", "outliers"], check=True, stdout=sys.stderr)
        golden = plan_engine(engine, folder, "golden", settings.chip, degrees.fitted(folder), port)
        with EngineProcess(golden, port) as process:
            process.wait_ready(_READY_S)
            judged = subprocess.run([*tool, "--endpoint", process.url, "--weights", "outliers", "--dtype", "bfloat16"],
                                    stdout=sys.stderr)
    if judged.returncode:
        raise typer.Exit(judged.returncode)


def require_serving() -> None:
    """Raise NotSupported where a library that serving needs is missing."""
    missing = [each for each in _NEEDS if importlib.util.find_spec(each) is None]
    if missing:
        raise NotSupported(f"serving needs {', '.join(missing)}: pip install 'anychip[serve]'")
