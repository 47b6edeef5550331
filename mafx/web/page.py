"""The page: what people see of the service, built with Gradio.

Other modules add tabs by a function `add_tab(service)`. It is called inside of `gr.Tabs`, opens its own `gr.Tab`, and
may return routes of Starlette, which the server answers besides.
"""

from collections.abc import Callable, Sequence

import gradio as gr
from starlette.routing import BaseRoute

from mafx.web import animate_tab, inspect_tab, mirror_tab
from mafx.web.service import Service

AddTab = Callable[[Service], Sequence[BaseRoute] | None]
TABS: tuple[AddTab, ...] = (animate_tab.add_tab, mirror_tab.add_tab, inspect_tab.add_tab)
TITLE = "mafx"
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
#progress progress { width: 100%; height: 8px; accent-color: var(--primary-500); }
.mafx-note, .mafx-problem { margin: 0; overflow-wrap: anywhere; }
.mafx-problem { color: var(--error-text-color, #b91c1c); }
.mafx-preview { width: 100%; margin-top: 8px; border-radius: 6px; image-rendering: pixelated; }
"""


def theme() -> gr.themes.Base:
    """Gradio's plainest theme, in the fonts of the system: those of its own would be fetched."""
    return gr.themes.Base(
        primary_hue="teal",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


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
