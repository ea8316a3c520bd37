"""The student that is served: a bundle, and the same weights as a bf16 checkpoint, which other engines convert."""

from pathlib import Path

import msgspec

from bundle.manifest import open_bundle

RANDOM = "qwen-0.5b"


class Model(msgspec.Struct, frozen=True):
    """One student in the forms that everybody starts from.

    `forms` is the folder where each engine keeps its own form; `max_tokens` is the longest answer; a `random` student
    answers nonsense, always of that length.
    """

    name: str
    bundle: Path
    checkpoint: Path
    forms: Path
    context: int
    max_tokens: int
    random: bool


def load_model(name: str, work: Path) -> Model:
    """The model called `qwen-0.5b`, or that of a bundle's folder; what has to be made is made once, below `work`.

    Raises:
        BundleError: there is no such bundle, or it has no NF4 export to make a checkpoint of.
    """
    if name == RANDOM:
        folder = work / RANDOM
        if not folder.is_dir():
            from bench.serving.making import make_random  # torch, which nobody waits for who needs nothing made

            make_random(folder, RANDOM)
        return _model(RANDOM, folder / "bundle", folder, max_tokens=32, random=True)
    bundle = open_bundle(Path(name))
    folder = work / f"{bundle.manifest.name}-{bundle.manifest.revision}"
    if not (folder / "checkpoint").is_dir():
        from bench.serving.making import restore

        restore(bundle.export_folder("nf4"), folder / "checkpoint")
    return _model(bundle.manifest.name, bundle.root, folder, max_tokens=128, random=False)


def _model(name: str, bundle: Path, folder: Path, max_tokens: int, random: bool) -> Model:
    context = open_bundle(bundle).manifest.context_length
    return Model(name, bundle, folder / "checkpoint", folder, context, max_tokens, random)
