"""The first tab of the page: a picture and a driving video in, a video out."""

import gradio as gr

from mafx.web.service import Service


def add_tab(service: Service) -> None:
    """Add the tab."""
    with gr.Tab("Animate"):
        gr.Markdown(", ".join(service.sources))
