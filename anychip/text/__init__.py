"""Real text, tokenizers and training batches: `corpus`, `files`, `tokenizer`, `batches`, `prompts`."""
