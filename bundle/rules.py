"""The closed catalogue of rules a student may name."""

from pathlib import Path
from typing import Literal

import msgspec

CATALOGUE_FILE = Path(__file__).with_name("catalogue.yaml")


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing a student can report."""

    id: str
    origin: Literal["injected", "hygiene"]
    severity: Literal["error", "warning", "note"]
    title: str
    message: str
    hint: str
    linter: tuple[str, ...] = ()

    def explain(self, at: str, fix: str | None) -> str:
        """One or two sentences for a person, about the text `at` and, when there is one, its replacement."""
        fixable = "{fix}" in self.hint
        if fixable and fix is None:
            return self.message.format(at=at)
        return f"{self.message.format(at=at)} {self.hint.format(at=at, fix=fix)}"


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every rule of one language, in the order in which a prompt and a schema list them."""

    language: str
    rules: tuple[Rule, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(rule.id for rule in self.rules)

    def __getitem__(self, rule_id: str) -> Rule:
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise KeyError(f"no rule {rule_id!r}; the catalogue has {', '.join(self.ids)}")


def load_catalogue(path: Path = CATALOGUE_FILE) -> Catalogue:
    """Read a catalogue from YAML.

    Raises:
        msgspec.ValidationError: the file does not describe a catalogue.
    """
    return msgspec.yaml.decode(path.read_bytes(), type=Catalogue)
