"""Which language a file is in, by its extension; None for one we can not tell."""

from pathlib import PurePosixPath

LANGUAGES = {
    "c": "c",
    "cc": "cpp",
    "cpp": "cpp",
    "cs": "csharp",
    "go": "go",
    "h": "c",
    "hpp": "cpp",
    "java": "java",
    "js": "javascript",
    "jsx": "javascript",
    "kt": "kotlin",
    "php": "php",
    "py": "python",
    "pyi": "python",
    "rb": "ruby",
    "rs": "rust",
    "scala": "scala",
    "swift": "swift",
    "ts": "typescript",
    "tsx": "typescript",
}


def language_of(path: str) -> str | None:
    """The language the path's extension names."""
    return LANGUAGES.get(PurePosixPath(path).suffix.removeprefix(".").lower())
