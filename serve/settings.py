"""Everything an operator can set: flags first, then environment variables, then these defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

ENVIRONMENT_PREFIX = "DEEPCODE_"


class SettingsError(ValueError):
    """A setting is missing or has a value it can not have; the message names it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One server's settings. The environment variable of `max_queue` is DEEPCODE_MAX_QUEUE, and so on."""

    bundle: Path
    trusted_key: str | None = None
    """A minisign public key; a bundle, of either kind, that it did not sign is refused."""
    engine: Literal["onnx", "vllm"] = "onnx"
    """What runs the student: ONNX Runtime or vLLM."""
    tensor_parallel: Annotated[int, Meta(ge=1)] = 1
    """GPUs that share the student's weights; vLLM's alone."""
    upstream: str | None = None
    """The URL of vLLM servers that run the student, with /v1; None: vLLM runs on this machine."""
    upstream_model: str | None = None
    """What they call it; None: the bundle's name."""
    upstream_key: Path | None = None
    """A file with the API key they ask for."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the student runs; `auto` takes CUDA where it works and the bundle has a graph for it."""
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    slots: Annotated[int, Meta(ge=1)] = 8
    """Units answered at once; each owns a KV row."""
    kv_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens that the KV cache of ONNX Runtime's engine may hold; 0 for a whole context for each slot."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """CPU threads of the engine; 0 for every core."""
    max_queue: Annotated[int, Meta(ge=1)] = 64
    """Requests accepted at once, those that wait included; one more is refused with 503."""
    max_body_bytes: Annotated[int, Meta(ge=1)] = 2_000_000
    max_batch_bytes: Annotated[int, Meta(ge=1)] = 20_000_000
    """The same for /v1/analyze/batch, which carries many files."""
    header_seconds: Annotated[float, Meta(gt=0)] = 10.0
    """How long a client may take to send the headers of a request."""
    body_seconds: Annotated[float, Meta(gt=0)] = 30.0
    """How long a client may take to send its body."""
    read_seconds: Annotated[float, Meta(gt=0)] = 30.0
    """How long a client may leave its answer unread before it is hung up on."""
    analysis_seconds: Annotated[float, Meta(gt=0)] = 120.0
    """How long one file may take; units that are not answered by then are listed as skipped."""
    drain_seconds: Annotated[float, Meta(ge=0)] = 30.0
    """How long accepted work may go on after SIGTERM."""
    api_keys: Path | None = None
    """A file with the hashes of the keys that are let in; without one everybody is."""
    requests_per_minute: Annotated[float, Meta(ge=0)] = 0.0
    """For each key; 0 for no limit."""
    tokens_per_minute: Annotated[float, Meta(ge=0)] = 0.0
    """For each key, prompt and answer tokens that had to be computed; 0 for no limit."""
    cache_bytes: Annotated[int, Meta(ge=0)] = 64_000_000
    """Memory for answers that are kept; 0 keeps none."""
    cache_url: str | None = None
    """A Valkey or Redis that keeps them too, for every server of a bundle."""
    search_bundle: Path | None = None
    """A search bundle's folder: what embeds code and queries; None: no code search."""
    index_dir: Path | None = None
    """The folder of the code search's index; this server's alone."""
    index_url: str | None = None
    """The URL of a PostgreSQL with pgvector that keeps the index instead, for many servers; a secret."""
    log_code: bool = False
    """Whether the code of a request is written to the log."""


def load_settings(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings:
    """Settings from flags and environment, both as text.

    Raises:
        SettingsError: the bundle is not named, or a value does not fit, or not to the others.
    """
    chosen: dict[str, str] = {}
    origin: dict[str, str] = {}
    for name in Settings.__struct_fields__:
        variable = f"{ENVIRONMENT_PREFIX}{name.upper()}"
        flag = flags.get(name)
        if flag is not None:
            chosen[name], origin[name] = flag, f"--{name.replace('_', '-')}"
        elif environment.get(variable):  # an empty variable is how a deployment says "not set"
            chosen[name], origin[name] = environment[variable], variable
    if "bundle" not in chosen:
        raise SettingsError(f"name a bundle: deepcode-serve BUNDLE, or set {ENVIRONMENT_PREFIX}BUNDLE")
    for name, value in chosen.items():
        try:
            msgspec.convert({"bundle": chosen["bundle"], name: value}, Settings, strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{origin[name]}={value!r}: {error}".removesuffix(f" - at `$.{name}`")) from error
    settings = msgspec.convert(chosen, Settings, strict=False, dec_hook=_path)
    if settings.upstream is not None and settings.engine != "vllm":
        raise SettingsError(f"{origin['upstream']} names vLLM servers: add --engine vllm")
    if settings.upstream is not None and not settings.upstream.startswith(("http://", "https://")):
        raise SettingsError(f"{origin['upstream']}={settings.upstream!r}: give a URL such as http://vllm:8000/v1")
    if settings.index_url is not None and not settings.index_url.startswith(("postgresql://", "postgres://")):
        # Not shown, as it may hold a password.
        raise SettingsError(f"{origin['index_url']}: give a URL such as postgresql://deepcode@database:5432/deepcode")
    kept = [name for name in ("index_dir", "index_url") if name in chosen]
    if (settings.search_bundle is None and kept) or (settings.search_bundle is not None and len(kept) != 1):
        given = origin[kept[0]] if kept else origin["search_bundle"]
        raise SettingsError(
            f"{given}: code search takes --search-bundle DIR and either --index-dir DIR or --index-url URL"
        )
    return settings


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)
