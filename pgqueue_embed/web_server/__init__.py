"""The base of every HTTP server of pgembed: where it may listen, who may ask, how it runs and ends.

A command that serves takes `ListeningOptions` (cli.listening_options), and calls::

    require_server_extra()
    listening = options.listening(port)
    serve(lambda address: make_app(...), listening, name="serve", on_started=say_where)

`make_app` returns any ASGI application; it is called once the address is known. `serve` puts the
`Guard` around it, so that an application sees only requests that name a host of ours, bring the key
where one is asked for, and whose whole body has come and is not too large; each response gets the
security headers, and an error that the application did not catch is logged and answered. Tests run
the same in a thread: see `Server`.
"""

from pgqueue_embed.web_server.extra import require_server_extra
from pgqueue_embed.web_server.guard import Guard
from pgqueue_embed.web_server.listening import Listening
from pgqueue_embed.web_server.server import Server, serve

__all__ = ["Guard", "Listening", "Server", "require_server_extra", "serve"]
