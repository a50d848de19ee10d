"""The documentation site: these pages, the notebooks with what they print, and the API from the docstrings.

`make docs` builds it. The sources are read from the root of the project, so that a link to
SECURITY.md leads to a page of the site, too.
"""

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from clipguard import __version__

project = "clipguard"
author = "the clipguard authors"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["README.md", "SECURITY.md", "CHANGELOG.md", "docs/**", "benchmarks/**.md"]
exclude_patterns = [".*", "**/.*", "runs", "site", "mutants", "dist", "src", "tests", "tools"]

# Tables of single benchmarks are linked, but stand in no menu.
suppress_warnings = ["toc.not_included"]

# Anchors of headings, as a forge makes them.
myst_heading_anchors = 4

# The notebooks are run anew each time: what they show must be of this code.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120
# Warnings of other packages name folders of the machine that builds the site.
nb_output_stderr = "remove"

# Docstrings mark code by single backticks, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"clipguard {release}"
html_extra_path = ["site"]
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Show diagrams as the text that they are made of: drawing them would load a script from elsewhere."""
    app.add_lexer("mermaid", TextLexer)
