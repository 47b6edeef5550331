"""Sphinx: the pages of this folder, and the docstrings of mafx."""

import mafx

project = "mafx"
author = "the mafx authors"
copyright = "the mafx authors, Apache-2.0"
version = release = mafx.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["speed_quality.md"]  # a table that performance.md includes
myst_heading_anchors = 3  # headings can be linked to, as on GitHub
default_role = "code"  # docstrings mark code by single backticks

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "mafx"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"font-stack": "system-ui, sans-serif", "font-stack--monospace": "ui-monospace, monospace"}
}


def list_settings(app, what, name, obj, options, lines):
    """The meaning of each setting is said where it is defined, and belongs into the docstring here."""
    if obj is mafx.Settings:
        lines += ["", *(f"- {setting}" for setting in mafx.Settings.describe().splitlines())]


def setup(app):
    app.connect("autodoc-process-docstring", list_settings)
