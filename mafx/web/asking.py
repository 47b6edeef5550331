"""Who asks for something on the page, what file they name, and how they are refused: for all tabs."""

import base64
import io
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.requests import Request

from mafx.web.guard import COOKIE, person_of

File = dict[str, Any] | None  # a file as Gradio's page sends it


def path_of(file: File) -> Path | None:
    """Where a file lies that the page, or a client, names."""
    return Path(file["path"]) if isinstance(file, dict) and isinstance(file.get("path"), str) else None


def person_who_asks(request: gr.Request | Request) -> str:
    """Whose files are meant, as the guard knows them."""
    return person_of(request.cookies.get(COOKIE, ""), request.client.host if request.client else "")


def turn_of(request: gr.Request) -> str:
    """Who waits: a browser, or one of several clients that have no cookie."""
    return request.cookies.get(COOKIE) or request.session_hash or person_who_asks(request)


def data_url(picture: np.ndarray, kind: str, **options: Any) -> str:
    """A picture uint8 `H W 3` as a data URL, of a kind that Pillow writes with these options."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def sentence(error: Exception) -> str:
    """What is wrong, for the page."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def refusal(error: Exception) -> gr.Error:
    """What is wrong, as Gradio shows it."""
    return gr.Error(sentence(error), duration=None, title="Not possible", print_exception=False)
