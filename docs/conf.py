"""The settings of the documentation. ``make docs`` builds it, without a network."""

import sys
import warnings
from pathlib import Path

from lightning_practices import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from public_names import type_hint

# sphinx-autodoc-typehints calls what Sphinx deprecates, once for each docstring.
warnings.filterwarnings("ignore", ".*set_application")

project = "lightning-practices"
author = "The lightning-practices developers"
copyright = author
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "mathml",  # this and the next two are in _ext
    "public_names",
    "other_projects",
]

nitpicky = True
suppress_warnings = ["config.cache"]  # typehints_formatter is a function
exclude_patterns = ["_ext", "_templates"]
templates_path = ["_templates"]

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
typehints_formatter = type_hint
typehints_document_rtype = False  # the signature shows it
typehints_use_signature_return = True
autodoc_typehints_format = "short"
always_use_bars_union = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"lightning-practices {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
