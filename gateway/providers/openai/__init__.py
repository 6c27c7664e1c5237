"""OpenAI's Images API as a provider."""
