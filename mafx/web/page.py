"""The page: what people see of the service, built with Gradio.

Other modules add tabs by a function `add_tab(service)`. It is called inside of `gr.Tabs`, opens its own `gr.Tab`, and
may return routes of Starlette, which the server answers besides.
"""

from collections.abc import Callable, Sequence

import gradio as gr
from starlette.routing import BaseRoute

from mafx.web import animate_tab
from mafx.web.service import Service

AddTab = Callable[[Service], Sequence[BaseRoute] | None]
TABS: tuple[AddTab, ...] = (animate_tab.add_tab,)
TITLE = "mafx: a picture of a person, moved"


def build(service: Service, tabs: Sequence[AddTab] = TABS) -> tuple[gr.Blocks, list[BaseRoute]]:
    """The page, and the routes that its tabs need.

    Args:
      service: What the page is for.
      tabs: What adds each tab, in their order.
    """
    routes: list[BaseRoute] = []
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown("# mafx\nA picture of a person and a driving video go in, a video of that person moving comes out.")
        with gr.Tabs():
            for add_tab in tabs:
                routes += add_tab(service) or ()
    return page, routes
