"""How Sphinx builds the site. Nothing is fetched: `sphinx-build -W docs docs/_build` works without a network."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate  # the folder beside this file

project = "metarun"
author = "the metarun developers"
copyright = author
version = release = version_of("metarun")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generate", "example_package"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Notebooks are texts without outputs, and are run as the site is built; other pages compute nothing.
nb_execution_mode = "auto"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # of a cell; all of a notebook takes a minute on two cores that are idle
nb_output_stderr = "remove"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it
napoleon_use_ivar = True
napoleon_attr_annotations = False

html_theme = "sphinx_book_theme"
html_title = "metarun"
html_static_path = ["_static"]
html_css_files = ["metarun.css"]
html_js_files = [("cells.js", {"defer": "defer"})]
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "navbar_persistent": [],  # the search of the sidebar is enough
}
html_show_sourcelink = False
html_copy_source = False


def setup(app):
    """Has the generated parts of pages made as the pages are read."""
    app.connect("source-read", lambda app, page, source: generate.fill(page, source))
