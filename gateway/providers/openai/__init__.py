"""The provider `openai`: OpenAI's Images API and compatible hosts. Only the composition root
imports it.
"""
