"""Quality of systems on the same questions: local models on any chip, and endpoints that speak OpenAI or Anthropic."""
