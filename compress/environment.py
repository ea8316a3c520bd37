"""The machine and the packages a recipe would run on."""

import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec

import psutil
import torch
from packaging.requirements import Requirement

from compress.checks import Check
from compress.recipe import Recipe, Train

_SHOWN = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "onnxruntime")


def environment_checks(recipe: Recipe) -> Iterator[Check]:
    """Versions, GPUs, and what a recipe needs of them."""
    yield from machine_checks(_SHOWN, _any(recipe, lambda train: train.bf16))
    if torch.cuda.device_count() > 1:
        yield Check("GPUs", "note", "start the run with torchrun to use them all, or set CUDA_VISIBLE_DEVICES=0")
    if torch.cuda.is_available() and find_spec("liger_kernel") is None and recipe.distill.teacher == "online":
        yield Check("Liger", "note", "not installed; `pip install liger-kernel` makes the online loss faster")
    if _any(recipe, lambda train: train.torch_compile) and shutil.which("c++") is None:
        yield Check("compiler", "note", "train.torch_compile needs a C++ compiler: install one, or set it to false")


def machine_checks(packages: Sequence[str], bf16: bool) -> Iterator[Check]:
    """Versions of these packages and of Python, and the GPUs, or the processor where there are none.

    Args:
        bf16: the recipe asks for it.
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    yield Check("packages", "ok", f"Python {platform.python_version()}, {versions}")
    others = _other_than_pinned()
    if others:
        yield Check("packages", "note", f"not the versions that were tested together: {', '.join(others)}")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, whole = torch.cuda.mem_get_info(number)
            named = f"{torch.cuda.get_device_name(number)}, {free / 1e9:.0f} of {whole / 1e9:.0f} GB free"
            yield Check(f"GPU {number}", "ok", named)
        if bf16 and not torch.cuda.is_bf16_supported():
            yield Check("bf16", "note", "this GPU has no bf16: set train.bf16: false")
    else:
        memory = psutil.virtual_memory().total / 1e9
        yield Check("processor", "ok", f"no GPU; {psutil.cpu_count(logical=False)} cores, {memory:.0f} GB of memory")


def _any(recipe: Recipe, wants: Callable[[Train], bool]) -> bool:
    loops: list[Train | None] = [recipe.train, recipe.teacher.train, recipe.teacher.focus]
    return any(wants(train) for train in loops if train is not None)


def _other_than_pinned() -> list[str]:
    found = []
    for line in metadata.requires("deepcode-analyst") or []:
        requirement = Requirement(line)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": "compress"}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            found.append(f"{requirement.name} {installed} instead of {requirement.specifier}")
    return found
