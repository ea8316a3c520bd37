"""One short text about a file, from the sentences the student wrote about its units."""

from collections.abc import Mapping, Sequence

from bundle.units import Unit

UNITS_IN_A_SUMMARY = 3


def summarised_units(units: Sequence[Unit], answerable: Sequence[int]) -> set[int]:
    """The positions of the units whose sentences a summary is made of: the only ones worth writing.

    The module's own code speaks for the file; without it, the largest units do.

    Args:
        units: every unit of the file.
        answerable: the positions of those a student can be asked about.
    """
    for index in answerable:
        if units[index].kind == "module":
            return {index}
    return set(sorted(answerable, key=lambda index: (-len(units[index].lines), index))[:UNITS_IN_A_SUMMARY])


def summarise(units: Sequence[Unit], sentences: Mapping[int, str]) -> str:
    """The file's summary.

    Args:
        units: every unit of the file.
        sentences: what was written about some of them, by position.
    """
    written = [(units[index], sentence) for index, sentence in sorted(sentences.items()) if sentence]
    if len(units) == 1 or [unit.kind for unit, _ in written] == ["module"]:
        return written[0][1] if written else ""
    text = " ".join(f"{unit.name}: {sentence}" for unit, sentence in written)
    others = len(units) - len(written)
    return f"{text} ({others} more.)" if text and others else text
