"""deepcode-serve: verify a bundle, then serve it until told to stop.

    deepcode-serve runs/nano/bundle --port 8000

Imports are inside `main`: the workers that parse code import this module, and need none of it.
"""

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 stopped as asked, 2 a setting or the bundle is wrong.

    Raises:
        SystemExit: with 3, by uvicorn, which has said why: the address cannot be listened on.
    """
    from serve.settings import SettingsError, load_settings

    flags = _parser().parse_args(arguments)
    try:
        settings = load_settings(vars(flags), os.environ)
    except SettingsError as error:
        return _refuse(str(error))

    from bundle.manifest import BundleError, open_bundle
    from serve.api.limits import Admission
    from serve.app import create_app
    from serve.launcher import make_server

    admission = Admission(settings.max_queue)
    try:
        app = create_app(settings, open_bundle(settings.bundle), admission)
    except BundleError as error:
        return _refuse(str(error))
    make_server(app, admission, settings.host, settings.port, settings.drain_seconds).run()
    return 0


def _refuse(reason: str) -> int:
    print(f"deepcode-serve: {reason}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepcode-serve",
        description="Serve a bundle. Every setting can also come from DEEPCODE_<NAME> in the environment.",
    )
    parser.add_argument("bundle", nargs="?", help="the bundle's folder")
    parser.add_argument("--engine", help="what runs the student: onnx (default)")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (default 8000)")
    parser.add_argument("--slots", help="units answered at once (default 8)")
    parser.add_argument("--threads", help="CPU threads of the engine (default: every core)")
    parser.add_argument("--max-queue", help="analyses accepted at once, others get 503 (default 64)")
    parser.add_argument("--max-body-bytes", help="largest request body (default 2000000)")
    parser.add_argument("--body-seconds", help="time a client has to send its body (default 30)")
    parser.add_argument("--drain-seconds", help="time accepted work has after SIGTERM (default 30)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
