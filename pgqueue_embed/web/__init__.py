"""The page of `pgembed web`: how everything stands, searches, and, if allowed, what to do about it.

`make_web_app` returns the application. All that moves on a page comes from one watcher that all
viewers share (`live`); `pages`, `failures` and `searching` have a function for each address,
`actions` what changes something, with the functions and rights of the commands. Pages are rendered
here and need no script to be read and used: with scripts, numbers move by themselves.

What is in `static` beside our own style sheet, script and icon came from npm as it is, with its
licence: htmx.org 2.0.11, htmx-ext-sse 2.2.4, idiomorph 0.8.0. Charts are SVG that is rendered here
(`charts`): columns and bars need no library, a screen reader can be told what they show, they
follow the colours of the page, and survive that what is around them is replaced all the time.
"""

from pgqueue_embed.web.app import make_site, make_web_app

__all__ = ["make_site", "make_web_app"]
