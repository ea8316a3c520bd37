"""Everybody who is measured."""

from bench.serving.peer import Peer
from bench.serving.peers.llama_cpp import LlamaCpp
from bench.serving.peers.onnxruntime_genai import OnnxRuntimeGenAI
from bench.serving.peers.openvino import OpenVino
from bench.serving.peers.ours import OurCompletions, OurCompletionsIn8Bits, Ours
from bench.serving.peers.transformers_serve import TransformersServe
from bench.serving.peers.vllm import Vllm

PEERS: tuple[Peer, ...] = (
    Ours(),
    OurCompletions(),
    OurCompletionsIn8Bits(),
    OpenVino("int4"),
    OpenVino("int8"),
    LlamaCpp(),
    Vllm("bf16"),
    Vllm("w4a16"),
    OnnxRuntimeGenAI(),
    TransformersServe(),
)
