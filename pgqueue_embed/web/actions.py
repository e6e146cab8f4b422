"""The forms that change something, where actions are allowed: each does what a command does."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pgqueue_embed.monitoring import actions
from pgqueue_embed.monitoring.actions import Action
from pgqueue_embed.web.refused import PageRefused
from pgqueue_embed.web.site import Site, url

MOST_FIELDS = 20


class Actions:
    """The function of the address that forms are sent to."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def act(self, request: Request) -> Response:
        """Do what the form asks for, and show the page that it came from, with what is said."""
        # Names are sent percent-encoded: a browser would change their line ends.
        body = (await request.body()).decode("ascii", "replace")
        try:
            fields = parse_qsl(body, keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            raise PageRefused(400, "that is no form of ours") from None
        form = {name: unquote(value) for name, value in fields}
        self._check(form)
        action = _action(form)
        said = await run_in_threadpool(self._done, action)
        back = {
            "failures": url("/failures", pipeline=form.get("pipeline"), said=said),
            "pipeline": url("/pipeline", name=form.get("pipeline"), said=said),
        }
        return RedirectResponse(back.get(form.get("back", ""), url("/", said=said)), 303)

    def _check(self, form: dict[str, str]) -> None:
        if not self._site.allows_actions:
            raise PageRefused(403, "this page only looks; start it with --allow-actions to act")
        if not self._site.is_own_form(form.get("form_key", "")):
            raise PageRefused(
                403, "the page is older than its server: go back, reload it, try again"
            )

    def _done(self, action: Action) -> str:
        said = actions.act(self._site.conninfo, action)
        self._site.live.look(anew=True)
        return self._site.messages.keep(said)


def _action(form: dict[str, str]) -> Action:
    """Return what a form asks for; raises PageRefused for what is no action."""
    what, name = form.get("action"), form.get("pipeline", "")
    if what == "pause":
        return lambda connection: actions.pause(connection, name)
    if what == "resume":
        return lambda connection: actions.resume(connection, name)
    if what == "retry":
        kind = form.get("kind") if "kind" in form else None
        return lambda connection: actions.retry(connection, name, kind)
    raise PageRefused(400, "there is no such action")
