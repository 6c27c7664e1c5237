"""The pages: a module for each, with its routes and the values that its template shows."""
