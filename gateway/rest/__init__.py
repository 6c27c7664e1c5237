"""REST: OpenAI's Images API and the tenant's own pages, translated to the core and back."""
