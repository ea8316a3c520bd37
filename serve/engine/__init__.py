"""Where tokens come from: KV slots, continuous batching and grammars over one loaded student."""
