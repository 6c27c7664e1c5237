"""The provider `gemini`: image models of Google's Gemini API."""
