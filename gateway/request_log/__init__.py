"""The request log: a line and a row for each request, how they are written, kept and read."""
