"""`ipiqa serve`: a model behind HTTP, for programs and for people."""

import argparse
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_command, add_model_arguments, whole_number
from ipiqa.errors import ConfigError

_NUMBERS = (  # flag, default, lowest, highest, help
    ("--port", 8000, 0, 65535, "port to listen on; 0 for one that is free"),
    ("--max-upload", 32, 1, 1024, "megabytes of one request"),
    ("--max-pixels", 40, 1, 80, "million pixels of an image"),
    ("--max-pairs", 32, 1, 1000, "pairs of an image and a prompt in one request"),
    ("--max-queue", 256, 1, 100_000, "pairs of all requests that may wait; more are answered 429"),
    ("--timeout", 60, 1, 3600, "seconds for a request to arrive, and again for its answer"),
    ("--batch-size", 16, 1, 4096, "pairs scored together"),
)


def add_commands(commands: Any) -> None:
    """Adds `ipiqa serve`."""
    more = (
        " A browser shows its page; programs ask POST /v1/score. No password is asked for. The first Ctrl-C or SIGTERM "
        "stops it when the running requests are answered."
    )
    parser = add_command(commands, "serve", serve, "score images that are sent over HTTP", more)
    add_model_arguments(parser)
    own = "address to listen on (default 127.0.0.1: only this machine reaches it; 0.0.0.0: every machine may)"
    parser.add_argument("--host", default="127.0.0.1", help=own)
    for flag, default, low, high, about in _NUMBERS:
        number = whole_number(flag, low, high)
        parser.add_argument(flag, type=number, default=default, metavar="N", help=f"{about} (default {default})")


def serve(arguments: argparse.Namespace) -> int:
    """Serves until a signal comes: 0 after SIGTERM, which is how services are stopped; 130 after Ctrl-C."""
    from ipiqa.files import require_package

    for package in ("fastapi", "python_multipart", "uvicorn"):
        require_package(package, "serve")
    from PIL import Image

    from ipiqa.scoring.loading import load
    from ipiqa.serve.app import make_app, make_server
    from ipiqa.serve.bodies import Limits

    limits = Limits(
        upload=arguments.max_upload << 20, pixels=arguments.max_pixels * 10**6, pairs=arguments.max_pairs,
        queue=arguments.max_queue, seconds=arguments.timeout, batch_size=arguments.batch_size,
    )  # fmt: skip
    with listen(arguments.host, arguments.port) as listener:  # first: what is wrong with it is known at once
        scorer = load(arguments.model, arguments.device, arguments.amp, folds=arguments.folds)
        scorer.score(Image.new("RGB", (64, 64)), "a first image, which takes longer")
        address, port = listener.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback:
            print(f"ipiqa: warning: --host {address}: all who reach this machine can use the server", file=sys.stderr)
        at = f"[{address}]" if ":" in address else address
        print(f"Serving {name_of(arguments.model)} at http://{at}:{port}/ (Ctrl-C stops it)", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: None)  # the server, which takes it, passes it on when it has ended
        make_server(make_app(scorer, limits, name_of(arguments.model)), limits).run([listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; ConfigError where it cannot."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        advice = "Give an address of this machine and a free port, such as --port 0."
        raise ConfigError(f"--host {host!r:.80} --port {port}: cannot be listened on ({problem}). {advice}") from None


def name_of(model: str) -> str:
    """Returns what to call a model: the name of its file or run folder, of its fold too where it is one."""
    folder = Path(model).resolve()
    if not folder.exists():
        return model.partition(" ")[0]  # on a hub, or a registered scorer, whose settings are left out
    folder = folder.parent if folder.name == "best.pt" else folder
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("fold_") else folder.name
