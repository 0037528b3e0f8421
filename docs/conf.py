"""Settings of Sphinx for `make docs`. The sources are the repository's own pages, at their own paths."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from crosscoop.version import __version__  # noqa: E402

project, release = "crosscoop", __version__
html_title = f"crosscoop {release}"
html_show_copyright = html_show_sphinx = False

extensions = ["generate", "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("docs", "notebooks")]

html_theme = "furo"
html_static_path = ["site.css", "forward.js"]
html_css_files = ["site.css"]
html_show_sourcelink = False
highlight_language = "none"  # of fences without a language
html_copy_source = html_use_index = False
html_show_search_summary = False  # it would fetch pages, which browsers refuse for local files

myst_heading_anchors = 4
smartquotes = False  # options begin with two hyphens
myst_disable_syntax = ["myst_line_comment"]  # a line of text may begin with %

nb_execution_mode = "cache"  # a notebook runs again when its code has changed, or after `make clean`
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"  # warnings of libraries, with paths of this machine
os.environ["PYTHONWARNINGS"] = 'ignore:install "ipywidgets":UserWarning'  # rich's, in every kernel

default_role = "code"  # docstrings use single backticks
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_display_short_literal_types = True
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!crosscoop\.).*")]  # other packages: their documentation is not part of this one
