"""Who asks for something on the page, what file they name, and how they are refused: for all tabs."""

from pathlib import Path
from typing import Any

import gradio as gr

from mafx.web.guard import COOKIE, person_of

File = dict[str, Any] | None  # a file as Gradio's page sends it


def path_of(file: File) -> Path | None:
    """Where a file lies that the page, or a client, names."""
    return Path(file["path"]) if isinstance(file, dict) and isinstance(file.get("path"), str) else None


def person_who_asks(request: gr.Request) -> str:
    """Whose files are meant, as the guard knows them."""
    return person_of(request.cookies.get(COOKIE, ""), request.client.host)


def turn_of(request: gr.Request) -> str:
    """Who waits: a browser, or one of several clients that have no cookie."""
    return request.cookies.get(COOKIE) or request.session_hash or person_who_asks(request)


def sentence(error: Exception) -> str:
    """What is wrong, for the page."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def refusal(error: Exception) -> gr.Error:
    """What is wrong, as Gradio shows it."""
    return gr.Error(sentence(error), duration=None, title="Not possible", print_exception=False)
