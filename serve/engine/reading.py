"""One answer that is chosen elsewhere, read token by token: what each stands for, and when the answer is complete."""

from bundle.grammar import AnswerGrammar
from serve.engine.base import EngineError, FinishReason, GenerationRequest, Token
from serve.engine.following import AnswerFollower


class AnswerReader:
    """Reads the answer to one request."""

    def __init__(
        self, grammar: AnswerGrammar, eos_token_ids: frozenset[int], request: GenerationRequest, context: int
    ) -> None:
        """
        Args:
            grammar: of the bundle's tokenizer.
            eos_token_ids: tokens that end an answer.
            request: what is answered.
            context: tokens that a prompt and its answer may have together.
        """
        room = context - len(request.prompt_ids)
        self.room = room if request.max_tokens is None else min(room, request.max_tokens)
        """How many tokens may still come."""
        self._grammar, self._eos, self._until = grammar, eos_token_ids, request.until
        self._follower: AnswerFollower | None = None
        if request.constrained:
            # Lines without text: quotes are not held to their line here. Who chooses does that, or nobody does.
            matcher = grammar.matcher(request.rules, ("",) * len(request.lines))
            self._follower = AnswerFollower(matcher, grammar.token_bytes)
        self._tail = b""

    def opening(self) -> list[int]:
        """The tokens that every such answer begins with: they need not be chosen. They are still to be read."""
        return [] if self._follower is None else list(self._follower.forced)

    def read(self, token: int, logprob: float) -> tuple[Token | None, FinishReason | None]:
        """The next token of the answer.

        Args:
            token: its id.
            logprob: the student's own, before any grammar.

        Returns:
            What it is, None for an end of the answer that is no part of it; and with the last one, why it is that.

        Raises:
            EngineError: it does not fit the answer's grammar.
        """
        if not 0 <= token < self._grammar.vocab_size:
            raise EngineError(f"token {token} is not in the student's vocabulary: another model answers")
        if token in self._eos:
            self.check_complete()
            return None, "stop"
        forced = self._follow(token)
        data = self._grammar.token_bytes[token]
        read = Token(token, data, 0.0 if forced else logprob, forced)
        self.room -= 1
        if self._ends_with(data) or (self._follower is not None and self._follower.matcher.finished):
            return read, "stop"
        return read, None if self.room > 0 else "length"

    def check_complete(self) -> None:
        """Nothing more comes.

        Raises:
            EngineError: the answer's grammar wants more.
        """
        if self._follower is not None and not self._follower.matcher.finished:
            raise EngineError("the answer ended in the middle")

    def _follow(self, token: int) -> bool:
        if self._follower is None:
            return False
        try:
            return self._follower.follow(token)
        except ValueError as error:
            raise EngineError(
                f"what runs the student does not hold it to the answer's schema ({error}); "
                "docs/serve.md says how vLLM must be started"
            ) from error

    def _ends_with(self, data: bytes) -> bool:
        """Whether `data` completes what the answer goes on until."""
        if not self._until:
            return False
        text = self._tail + data
        self._tail = text[max(0, len(text) - len(self._until) + 1) :]
        return self._until in text
