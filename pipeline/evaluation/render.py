"""Pages from the templates in pages/: self-contained, nothing is loaded from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

PAGES = Path(__file__).parent / "pages"


def render(template: str, **values: Any) -> str:
    """A page as text; every value is escaped but what is Markup. An unknown name is an error."""
    loader = jinja2.FileSystemLoader(PAGES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
