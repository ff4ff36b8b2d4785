"""Settings of the docs site: Sphinx reads the Markdown pages as GitHub shows them.

The source folder is the checkout: a link from README.md to `docs/ingest.md`, or from there to
`../CONTRIBUTING.md`, is then the same on GitHub and in the site, and a strict build checks it.
"""

import logging
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

logging.getLogger("numexpr").setLevel(logging.WARNING)  # it tells its threads on import

from site_navigation import FOLDERS, ROOT_PAGES  # noqa: E402 - it lies in this folder

project = "slidelake"
author = "The slidelake authors"
project_copyright = f"{author}, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "site_api",
    "site_navigation",
]
root_doc = "docs/index"
include_patterns = [*(f"{folder}/**" for folder in FOLDERS), *ROOT_PAGES]
# the walk over the checkout enters no other folder, such as .venv or a lake
FOLDERS_READ = {Path(page).parts[0] for page in (*FOLDERS, *ROOT_PAGES)}
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in FOLDERS_READ]

# ---------------------------------------------------------------------- pages
highlight_language = "text"  # of a block without a language; "sh" and others are named
myst_heading_anchors = 4
myst_enable_extensions = ["alert"]
# tables of labels, as our pages show them; Pygments has no names for them
suppress_warnings = ["misc.highlighting_failure"]

# ---------------------------------------------------------------------- docstrings
default_role = "py:obj"  # `name` is a link where it is on some page, else code
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_attr_annotations = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 72
python_display_short_literal_types = True

# ---------------------------------------------------------------------- the look
html_theme = "furo"
html_title = "slidelake"
html_static_path = ["static"]
html_css_files = ["slidelake.css"]
html_favicon = "static/favicon.svg"
html_extra_path = ["root"]  # site/index.html leads to site/docs/index.html
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_logo": "logo.svg",
    "dark_logo": "logo.svg",
    "light_css_variables": {
        "color-brand-primary": "#5b3a8e",
        "color-brand-content": "#5b3a8e",
        "color-brand-visited": "#8a2f66",
    },
    "dark_css_variables": {
        "color-brand-primary": "#c3a6f2",
        "color-brand-content": "#c3a6f2",
        "color-brand-visited": "#ef9cc5",
    },
}
