"""The part of OpenAI's API that is spoken here, as types.

A field that would change the answer and is not supported is refused rather than ignored: it may be sent with the one
value that changes nothing.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Zero = Annotated[float, Meta(ge=0, le=0)]
One = Annotated[int, Meta(ge=1, le=1)]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000)]
StopSequence = Annotated[str, Meta(min_length=1, max_length=1000)]
StopSequences = Annotated[list[StopSequence], Meta(max_length=4)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the last piece of a stream tells the usage."""

    include_usage: bool = False


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints take. `temperature` is 0 unless it is given: the likeliest answer, the same every time."""

    model: Annotated[str, Meta(max_length=512)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: StopSequence | StopSequences | None = None
    user: str | None = None
    n: One | None = None
    top_p: Annotated[float, Meta(ge=1, le=1)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None

    @property
    def stop_sequences(self) -> list[str]:
        """Always a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class CompletionRequest(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: Annotated[str, Meta(min_length=1)]
    max_tokens: Tokens | None = 16
    echo: Literal[False] | None = None


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message; there are no images here."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The whole message."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=1000)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    """`cached_tokens` of the prompt were not computed again."""

    cached_tokens: int


class CompletionUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one answer."""

    text: str
    index: int = 0
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of /v1/completions, whole or a piece of it."""

    id: str
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: CompletionUsage | None = None
    object: Literal["text_completion"] = "text_completion"


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the student said."""

    content: str
    role: Literal["assistant"] = "assistant"


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one answer."""

    message: AnswerMessage
    index: int = 0
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a piece of an answer adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the one answer."""

    delta: Delta
    index: int = 0
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: CompletionUsage | None = None
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may be named in a request."""

    id: str
    created: int = 0
    owned_by: str = "deepcode-analyst"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/models."""

    data: tuple[Model, ...]
    object: Literal["list"] = "list"
