"""Settings of Sphinx. Build with `make docs`, or `sphinx-build -W -b html docs docs/_build/html`."""

import re

from sphinx.application import Sphinx

import udmlss

project = "udmlss"
author = "The udmlss authors"
version = release = udmlss.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write code as `name`
html_theme = "furo"
html_title = f"udmlss {version}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"  # shapes are part of the types, as in Float[Tensor, 'n d']
napoleon_attr_annotations = False  # the signature shows them
napoleon_use_ivar = True


def convert_docstring(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Convert math between dollars to reStructuredText, and escape a single letter that would start a list."""
    text = re.sub(r"^\$\$(.+?)\$\$$", _equation, "\n".join(lines), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<![\w$`])\$([^$\n`]+)\$(?![\w$])", r":math:`\1`", text)
    lines[:] = re.sub(r"^(:param \w+:\s+[A-Z])\. ", r"\1\\. ", text, flags=re.MULTILINE).split("\n")


def _equation(found: re.Match[str]) -> str:
    return ".. math:: " + " ".join(found[1].split())


def setup(app: Sphinx) -> None:
    """Register the conversion of docstrings."""
    app.connect("autodoc-process-docstring", convert_docstring)
