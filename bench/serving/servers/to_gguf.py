"""A Qwen2 checkpoint as a GGUF file in 16 bits, for llama.cpp: `python -m … CHECKPOINT FILE`.

llama.cpp's own converter knows tokenizers by a hash and refuses all others, so those that a student of ours may have.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

ARCHITECTURE = "qwen2"


def convert(checkpoint: Path, out: Path) -> None:
    """Write `out`.

    Raises:
        ValueError: the checkpoint has a tensor that llama.cpp's Qwen2 has no place for.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(out, ARCHITECTURE)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, checkpoint, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, values in _tensors(checkpoint / "model.safetensors"):
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise ValueError(f"{checkpoint}: llama.cpp's {ARCHITECTURE} has no tensor for {name}")
        writer.add_tensor(place, values.astype(np.float16) if values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, config: dict) -> None:
    """Byte-level BPE with Qwen2's way to cut text."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokens = {number: (text, gguf.TokenType.NORMAL) for text, number in tokenizer["model"]["vocab"].items()}
    for added in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    unused = {number: (f"[UNUSED{number}]", gguf.TokenType.UNUSED) for number in range(config["vocab_size"])}
    texts, kinds = zip(*(pair for _, pair in sorted((unused | tokens).items())), strict=True)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The bf16 tensors of a safetensors file in float32; numpy has no bf16, which is float32's upper half."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] != "BF16":
            raise ValueError(f"{file}: {name} is {entry['dtype']}, not BF16")
        upper = np.memmap(file, np.uint16, "r", 8 + size + begin, ((end - begin) // 2,))
        yield name, (upper.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
