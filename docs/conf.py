"""How Sphinx builds the site: `make docs` writes it to build/docs and fails on any warning."""

from __future__ import annotations

import sys
from pathlib import Path

from chronomask import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docs.reference_pages import write_reference  # noqa: E402

write_reference(HERE / "reference")

project = "chronomask"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["results/*/*.html"]
copyright = "the authors of chronomask"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"chronomask {__version__}"
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_copy_source = False
# Notes on what every page may link to outside of docs/: files of the repository, which are no pages.
suppress_warnings = ["myst.xref_missing"]
