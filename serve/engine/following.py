"""An answer whose tokens somebody else chooses: where it stands in its grammar.

vLLM's worker follows an answer to say which token may come next; who reads the answer follows it to know which
tokens were a choice, and when it is complete.
"""

from bundle.grammar import AnswerMatcher


class AnswerFollower:
    """Moves along one answer, token by token."""

    def __init__(self, matcher: AnswerMatcher, token_bytes: list[bytes]) -> None:
        """
        Args:
            matcher: at the start of an answer; it is the follower's from now on.
            token_bytes: what each token stands for.
        """
        self.matcher = matcher
        self._token_bytes = token_bytes
        self._forced = matcher.forced()

    @property
    def forced(self) -> list[int]:
        """The tokens that come next because nothing else can; empty where there is a choice."""
        return self._forced

    def follow(self, token: int) -> bool:
        """Move past a token.

        Returns:
            Whether it was no choice. The forced text counts as forced however it is cut into tokens.

        Raises:
            GrammarError: it does not fit the answer's grammar.
        """
        text = b"".join(self._token_bytes[each] for each in self._forced)
        data = self._token_bytes[token]
        self.matcher.consume(token)
        if self._forced and token == self._forced[0]:
            del self._forced[0]
            was_forced = True
        else:
            self._forced = []
            was_forced = bool(data) and text.startswith(data)
        if not self._forced:
            self._forced = self.matcher.forced()
        return was_forced
