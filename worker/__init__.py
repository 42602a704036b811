"""The worker: an agent per rank, and the plugin that makes an SGLang server an elastic rank."""
