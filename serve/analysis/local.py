"""An analysis without a server: the same engine and analyzer, in this process."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from serve.analysis.report import Report


class LocalAnalyzer:
    """A bundle loaded in this process. Close it, or use it as a context manager."""

    def __init__(self, bundle_path: Path) -> None:
        """
        Args:
            bundle_path: the bundle's folder; every file in it is verified.

        Raises:
            BundleError: the folder is not a bundle that may be loaded.
        """
        raise NotImplementedError

    def analyze(
        self,
        code: str,
        path: str = "<input>",
        rules: Sequence[str] | None = None,
        min_confidence: float | None = None,
    ) -> Report:
        """One file's report.

        Raises:
            UnparsableCode: the code does not parse; it names line and column.
            RefusedInput: an unknown rule, a language this bundle does not know, or text that is not code.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Stop the engine; a closed analyzer can not be used again."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
