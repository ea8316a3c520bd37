"""deepcode-serve: verify a bundle, then serve it until told to stop.

    deepcode-serve runs/nano/bundle --port 8000

Imports are inside `main`: the workers that parse code import this module, and need none of it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 stopped as asked, 1 the engine broke down, 2 a setting, the
    file of keys or the bundle is wrong.

    Raises:
        SystemExit: with 3, by uvicorn, which has said why: the address cannot be listened on.
    """
    flags = _parser().parse_args(arguments)
    if flags.new_key is not None:
        return _make_key(flags.api_keys or os.environ.get("DEEPCODE_API_KEYS"), flags.new_key)

    from serve.settings import SettingsError, load_settings

    try:
        settings = load_settings(vars(flags), os.environ)
    except SettingsError as error:
        return _refuse(str(error))

    from bundle.manifest import BundleError, open_bundle
    from serve.api.keys import KeyFileError
    from serve.api.limits import Admission
    from serve.api.logs import log_to_stderr
    from serve.api.tracing import make_tracing
    from serve.app import create_app
    from serve.engine.base import EngineUnavailable
    from serve.engine.steps import StudentBroken
    from serve.launcher import make_server
    from serve.search.base import IndexUnusable

    log_to_stderr()
    admission = Admission(settings.max_queue)
    try:
        if settings.trusted_key is not None:
            from bundle.signature import verify_signature

            for root in (settings.bundle, settings.search_bundle):
                if root is not None:
                    verify_signature(root, settings.trusted_key)
        tracing = make_tracing(os.environ)
        app = create_app(settings, open_bundle(settings.bundle), admission, tracing)
    except (BundleError, IndexUnusable, KeyFileError, SettingsError, EngineUnavailable, StudentBroken) as error:
        return _refuse(str(error))
    server = make_server(app, admission, settings)
    server.run()
    return 1 if server.engine_failed else 0


def _make_key(file: str | None, name: str) -> int:
    from serve.api.keys import KeyFileError, add_new_key

    if not file:
        return _refuse("say which file the key's hash is to be added to: --api-keys FILE --new-key NAME")
    try:
        key = add_new_key(Path(file), name)
    except (KeyFileError, OSError) as error:
        return _refuse(str(error))
    print(key)
    print(f"deepcode-serve: its hash is in {file}; the key itself is nowhere, so keep it.", file=sys.stderr)
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
    parser.add_argument("--trusted-key", metavar="KEY", help="a minisign public key that must have signed it")
    parser.add_argument("--engine", help="what runs the student: onnx (default) or vllm")
    parser.add_argument("--tensor-parallel", metavar="GPUS", help="GPUs that share the student, with vllm (default 1)")
    parser.add_argument("--upstream", metavar="URL", help="vLLM servers that run it, with /v1 (default: this machine)")
    parser.add_argument("--upstream-model", metavar="NAME", help="what they call it (default: the bundle's name)")
    parser.add_argument("--upstream-key", metavar="FILE", help="holds the API key they ask for (default: none)")
    parser.add_argument("--device", help="where it runs: auto (default), cpu or cuda")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (default 8000)")
    parser.add_argument("--slots", help="units answered at once (default 8)")
    parser.add_argument("--kv-tokens", help="tokens the KV cache may hold (default: a whole context for each slot)")
    parser.add_argument("--threads", help="CPU threads of the engine (default: every core; a small student takes two)")
    parser.add_argument("--max-queue", help="requests accepted at once, others get 503 (default 64)")
    parser.add_argument("--max-body-bytes", help="largest request body (default 2000000)")
    parser.add_argument("--max-batch-bytes", help="largest body of a batch (default 20000000)")
    parser.add_argument("--header-seconds", help="time a client has to send a request's headers (default 10)")
    parser.add_argument("--body-seconds", help="time a client has to send its body (default 30)")
    parser.add_argument("--read-seconds", help="time a client may leave its answer unread (default 30)")
    parser.add_argument("--analysis-seconds", help="time one file may take (default 120)")
    parser.add_argument("--drain-seconds", help="time accepted work has after SIGTERM (default 30)")
    parser.add_argument("--api-keys", metavar="FILE", help="hashes of the keys that are let in (default: no key)")
    parser.add_argument("--requests-per-minute", help="requests of one key (default 0: no limit)")
    parser.add_argument("--tokens-per-minute", help="computed tokens of one key (default 0: no limit)")
    parser.add_argument("--cache-bytes", help="memory for answers that are kept (default 64000000)")
    parser.add_argument("--cache-url", help="a Valkey or Redis that keeps them too (default: none)")
    parser.add_argument("--search-bundle", metavar="DIR", help="a search bundle, for code search (default: none)")
    parser.add_argument("--index-dir", metavar="DIR", help="where its index is kept (default: --index-url)")
    parser.add_argument("--index-url", metavar="URL", help="a PostgreSQL that keeps it instead (default: none)")
    parser.add_argument("--log-code", metavar="BOOL", help="whether requests' code is logged (default false)")
    parser.add_argument("--new-key", metavar="NAME", help="add a key to the --api-keys FILE, print it, and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
