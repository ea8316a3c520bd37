"""The last stage: everything a student needs to be served, in one folder that is whole or not there."""

import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from transformers import AutoConfig, AutoModelForCausalLM

from bundle.answer import answer_schema
from bundle.chat import TEMPLATE_FILE, TOKENIZER_CONFIG_FILE
from bundle.manifest import (
    PROMPT_FILE,
    RULES_FILE,
    SCHEMA_FILE,
    SCHEMA_VERSION,
    TOKENIZER_FILE,
    Export,
    Manifest,
    ModelShape,
    describe_files,
    weights_sha256,
    write_manifest,
)
from bundle.rules import CATALOGUE_FILE, Catalogue
from compress.data.tokens import load_tokenizer, prompt_template
from compress.evaluate import Evaluation
from compress.recipe import Recipe
from compress.student import head_dimension

_VERSIONS_OF = (
    "torch",
    "transformers",
    "bitsandbytes",
    "compressed-tensors",
    "trl",
    "onnxruntime",
    "onnxruntime-genai",
    "ruff",
)

_READABLE = 0o644  # what serves a bundle is seldom the user who made it, and safetensors writes for that one alone


def write_bundle(
    recipe: Recipe,
    catalogue: Catalogue,
    student: Path,
    exports: dict[str, tuple[Path, str]],
    evaluation: Evaluation,
    report: Path,
    lineage: dict[str, Any],
    target: Path,
) -> None:
    """Write the bundle to `target`, replacing an older one only when the new one is complete.

    Args:
        student: the bf16 checkpoint, for its tokenizer and shape.
        exports: kind -> (folder to copy, how its weights are stored).
        report: a folder with report.html and report.json.
        lineage: what the weights came from; versions are added here.
    """
    staged = target.with_name(f"{target.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    (staged / PROMPT_FILE).write_text(prompt_template(recipe.data.prompt), encoding="utf-8")
    shutil.copy(CATALOGUE_FILE, staged / RULES_FILE)
    schema = answer_schema(catalogue.ids, recipe.data.max_lines)
    (staged / SCHEMA_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(schema), indent=2))
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        shutil.copy(student / name, staged / name)
    if (student / TEMPLATE_FILE).is_file():
        shutil.copy(student / TEMPLATE_FILE, staged / TEMPLATE_FILE)
    for kind, (folder, _) in exports.items():
        shutil.copytree(folder, staged / kind)
    for file in report.iterdir():
        shutil.copy(file, staged / file.name)
    files = describe_files(staged)
    config = AutoConfig.from_pretrained(student)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=recipe.name,
        language=catalogue.language,
        context_length=config.max_position_embeddings,
        eos_token_ids=(load_tokenizer(student).eos_token_id,),
        model=_shape(student, config),
        exports={kind: Export(path=kind, quantization=storage) for kind, (_, storage) in exports.items()},
        weights_sha256=weights_sha256(files, next(iter(exports))),
        thresholds=evaluation.thresholds,
        lineage={**lineage, "versions": versions(_VERSIONS_OF)},
        scores={"retention": evaluation.retention, "units": evaluation.units},
        files=files,
        calibration={rule: tuple(knots) for rule, knots in evaluation.confidence.knots.items()},
    )
    write_manifest(staged, manifest)
    replace_folder(target, staged)


def replace_folder(target: Path, staged: Path) -> None:
    """Put a folder that is whole in the place of an older one, readable for everyone."""
    for file in staged.rglob("*"):
        if file.is_file():
            file.chmod(_READABLE)
    if target.exists():
        old = target.with_name(f"{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        staged.rename(target)
        shutil.rmtree(old)
    else:
        staged.rename(target)


def _shape(student: Path, config) -> ModelShape:
    model = AutoModelForCausalLM.from_pretrained(student)
    return ModelShape(
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        vocab_size=config.vocab_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dimension(config),
    )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of these packages, as they are installed."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {name: metadata.version(name) for name in packages}
