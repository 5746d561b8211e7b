"""Pages by Jinja2: one offline HTML document for light, dark and paper.

Every value is escaped. The page fetches nothing, and its content policy forbids it, should an address ever slip in:
pictures are inline, fonts are the reader's own.
"""

import base64
import html
import re
from typing import Any

import numpy as np

from vesselgan.core.version import __version__
from vesselgan.viz.palette import DARK, LIGHT
from vesselgan.viz.pictures import encode_png


def render(package: str, template: str, values: dict[str, Any]) -> str:
    """Fills a template of PACKAGE/templates; it may extend base.html and draw a chart with `chart` of macros.html."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("vesselgan.viz")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "code": code}
    return environment.get_template(template).render(values, light=LIGHT, dark=DARK, version=__version__)


def code(text: str) -> str:
    """The text as escaped HTML: what stands between two backticks, a command or a setting, is <code>."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(str(text)))


def data_uri(picture: np.ndarray | bytes) -> str:
    """A picture (HxWx3 uint8, or PNG bytes) as an address that holds its PNG."""
    png = picture if isinstance(picture, bytes) else encode_png(picture)
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
