"""Several processes make one run: the same soft labels, gradients and weights as one process makes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from compress.data.examples import write_examples
from tests.support.tiny_bundle import make_tiny_checkpoint
from tests.support.two_processes import work

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, examples) -> Path:
    """What one process made, and what two made under torchrun: DDP from cached labels, FSDP with an online teacher."""
    folder = tmp_path_factory.mktemp("ranks")
    make_tiny_checkpoint(folder / "student")
    make_tiny_checkpoint(folder / "teacher", seed=3)
    write_examples(folder / "train.jsonl", examples)
    work(folder, sharded=False)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.support.two_processes", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


def test_two_processes_write_the_shards_that_one_writes(folder: Path) -> None:
    one, two = ({file.name: file.read_bytes() for file in (folder / count / "labels").iterdir()} for count in "12")
    assert sum(name.startswith("shard-") for name in one) == 6
    assert two == one


@pytest.mark.parametrize("how", ["cached", "online"], ids=["DDP", "FSDP"])
def test_two_processes_end_with_the_weights_of_one(folder: Path, how: str) -> None:
    before = load_file(folder / "student" / "model.safetensors")
    one, two = (load_file(folder / count / how / "model" / "model.safetensors") for count in "12")
    assert one.keys() == two.keys() == before.keys()
    for name, whole in one.items():
        moved = (whole - before[name]).abs().max()
        assert (whole - two[name]).abs().max() <= 2e-3 * moved + 1e-6, name
    assert any((one[name] - before[name]).abs().max() > 1e-3 for name in before)


def test_what_is_logged_is_over_all_processes(folder: Path) -> None:
    logged = []
    for count in "12":
        state = json.loads((folder / count / "cached" / "model" / "training.json").read_text())
        logged.append((state["num_input_tokens_seen"], state["global_step"]))
    assert logged[0] == logged[1]
    assert logged[0][0] > 0
