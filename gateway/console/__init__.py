"""The console: pages for people in a browser, under /console.

A front like `rest`: it reads forms, calls the core and renders its answers as HTML. `render` makes
pages of templates/, `charts` their figures, `assets` serves static/; each module of pages/ has the
routes of one screen.

`router` has all routes; only `gateway.main` imports it. Pages get their viewer from `dependencies`,
and change nothing but through `gateway.identity.transactions`.
"""
