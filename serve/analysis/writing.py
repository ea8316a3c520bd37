"""Free text from the student: prompts that are no unit's, and answers that end where the caller says."""

import codecs
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

import msgspec
from tokenizers import Tokenizer

from bundle.chat import ChatPrompt, load_chat_prompt
from bundle.manifest import Bundle
from bundle.prompt import Prompt
from bundle.units import Unit, UnitLine, normalise
from serve.analysis.asking import Observer
from serve.engine.base import Engine, GenerationRequest, TokenStream


class PromptRefused(ValueError):
    """The student can not be asked this; the message says what it can be asked."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer ended and what it took."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Writer:
    """Asks one student for text."""

    def __init__(self, bundle: Bundle, engine: Engine, observer: Observer | None = None) -> None:
        """
        Args:
            bundle: the student's tokenizer, chat template and prompt.
            engine: who writes.
            observer: told of every engine request.

        Raises:
            ChatTemplateError: the bundle's chat template is not valid.
        """
        self._tokenizer = Tokenizer.from_file(str(bundle.tokenizer_file))
        self._chat: ChatPrompt | None = load_chat_prompt(bundle.root, self._tokenizer)
        self._prompt = Prompt(bundle.prompt_template, bundle.catalogue, self._tokenizer)
        self._rules = bundle.catalogue.ids
        self._context = bundle.manifest.context_length
        self._engine, self._observer = engine, observer

    def text_request(self, text: str) -> GenerationRequest:
        """A request to go on from `text`; special tokens in it are what they are.

        Raises:
            PromptRefused: it is empty, or does not fit the context.
        """
        return self._checked(GenerationRequest(self._tokenizer.encode(text).ids, constrained=False))

    def chat_request(self, messages: Sequence[tuple[str, str]]) -> GenerationRequest:
        """A request to answer a conversation of (role, text).

        Without a chat template a student knows one conversation alone: it is shown the code of one unit, and answers
        with its findings as JSON.

        Raises:
            PromptRefused: there is no chat template and this is another conversation; or it does not fit.
            ChatTemplateError: the template refuses it.
        """
        if self._chat is not None:
            return self._checked(GenerationRequest(self._chat.encode(messages), constrained=False))
        if [role for role, _ in messages] != ["user"]:
            raise PromptRefused(
                "this bundle has no chat template; send one message of role `user`: the code of one function"
            )
        texts = [line.rstrip() for line in normalise(messages[0][1]).split("\n") if line.strip()]
        if not texts:
            raise PromptRefused("the message holds no code")
        lines = tuple(UnitLine(number=number, text=text, removed=0) for number, text in enumerate(texts, start=1))
        unit = Unit(kind="function", name="<chat>", lines=lines, summary=None)
        return self._checked(GenerationRequest(self._prompt.encode(unit), self._rules, unit.texts))

    def _checked(self, request: GenerationRequest) -> GenerationRequest:
        tokens = len(request.prompt_ids)
        if not 0 < tokens < self._context:
            raise PromptRefused(f"a prompt of {tokens} tokens does not fit the context of {self._context}")
        return request

    async def write(
        self, request: GenerationRequest, stop: Sequence[str], pay: Callable[[int], None]
    ) -> AsyncIterator[str | Ending]:
        """The answer's text in pieces, then how it ended. Closing this cancels the request within a step.

        Args:
            request: from `text_request` or `chat_request`, with its limits.
            stop: the answer ends before the first of these.
            pay: told how many tokens were computed.

        Raises:
            EngineError: it can not be answered.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        scanner = StopScanner(stop)
        count = 0
        async with self._engine.submit(request) as stream:
            try:
                async for tokens in stream.pieces():
                    text = ""
                    for token in tokens:
                        count += 1
                        text += scanner.feed(decoder.decode(token.data))
                        if scanner.stopped:
                            break
                    if text:
                        yield text
                    if scanner.stopped:
                        break
            finally:
                if stream.written:  # perhaps more than were read: a client may leave in the middle
                    pay(len(request.prompt_ids) - stream.cached_tokens + stream.written)
                self._tell(stream, count)
        if not scanner.stopped and (rest := scanner.feed(decoder.decode(b"", final=True)) + scanner.rest()):
            yield rest
        yield Ending(
            reason="length" if stream.finish_reason == "length" else "stop",
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=stream.cached_tokens,
            completion_tokens=count,
        )

    def _tell(self, stream: TokenStream, count: int) -> None:
        if self._observer is not None:
            self._observer.answered(stream.timeline, time.monotonic(), count)


class StopScanner:
    """Lets text through up to the first stop sequence, whichever way it is cut into pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [sequence for sequence in stop if sequence]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be sent now: what can not be the beginning of a stop sequence any more."""
        self._held += text
        ends = [at for sequence in self._stop if (at := self._held.find(sequence)) >= 0]
        if ends:
            self.stopped = True
            sent, self._held = self._held[: min(ends)], ""
            return sent
        keep = max((self._overlap(sequence) for sequence in self._stop), default=0)
        sent, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return sent

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        sent, self._held = self._held, ""
        return sent

    def _overlap(self, sequence: str) -> int:
        """How much of the end of what is held is the beginning of `sequence`."""
        longest = min(len(sequence) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(sequence[:size])), 0)
