"""Sign-in, sign-out and sessions: the pages that need no viewer, or are about the viewer."""
