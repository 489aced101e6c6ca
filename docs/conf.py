"""Sphinx configuration; ``make docs`` builds with warnings as errors and without network."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).parent

# -- Tutorials ------------------------------------------------------------------------------------
# The executed notebooks live in /tutorials of the repository; sphinx reads only below this folder,
# so they are copied here (the copies are not under version control) and listed for tutorials.md.
tutorials, copies = HERE.parent / "tutorials", HERE / "tutorials"
copies.mkdir(exist_ok=True)
for stale in copies.glob("*.ipynb"):
    if not (tutorials / stale.name).exists():
        stale.unlink()
for notebook in sorted(tutorials.glob("*.ipynb")):
    copy = copies / notebook.name
    if not copy.exists() or not filecmp.cmp(notebook, copy, shallow=False):
        shutil.copy2(notebook, copy)
generated = HERE / "generated"
generated.mkdir(exist_ok=True)
entries = [f"/tutorials/{notebook.stem}" for notebook in sorted(copies.glob("*.ipynb"))]
(generated / "tutorials.txt").write_text(
    "\n".join(["```{toctree}", ":maxdepth: 1", "", *entries, "```", ""]) if entries else "None yet.\n"
)

# -- Command line ---------------------------------------------------------------------------------
# api.md includes what `scscore --help` and `scscore <command> --help` print, so that it stays true.


def usage(*arguments: str) -> str:
    """Return the help text of the command line for these arguments."""
    code = "import sys; sys.argv[0] = 'scscore'; from scscore.cli import main; sys.exit(main())"
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", code, *arguments, "--help"]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.rstrip()


overview = usage()
commands = re.search(r"\{([\w,-]+)\}", overview)
blocks = [("", overview)]
blocks += [(name, usage(name)) for name in (commands[1].split(",") if commands else [])]
(generated / "command_line.txt").write_text(
    "\n".join(f"### `scscore {name}`\n\n```text\n{text}\n```\n".replace(" `\n", "`\n") for name, text in blocks)
)

# -- Project information --------------------------------------------------------------------------
info = metadata("scscore")
project = info["Name"]
author = info["Author"]
copyright = f"{datetime.now(tz=UTC):%Y}, {author}"
version = release = info["Version"]
urls = dict(entry.split(", ") for entry in info.get_all("Project-URL"))
repository_url = urls["Source"]

# -- General --------------------------------------------------------------------------------------
needs_sphinx = "8.1"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "Thumbs.db", ".DS_Store", "**.ipynb_checkpoints"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
default_role = "literal"
pygments_style = "default"
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
# annotations of names imported under `if TYPE_CHECKING` may stay unresolved
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference", "sphinx_autodoc_typehints.guarded_import"]

autosummary_generate = True
autodoc_member_order = "groupwise"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_include_init_with_doc = False
napoleon_use_ivar = True
napoleon_use_rtype = True
napoleon_use_param = True
typehints_defaults = "braces"

myst_heading_anchors = 6
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_admonition", "html_image"]
myst_url_schemes = ("http", "https", "mailto")
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"

# Links into other projects need the network: on the documentation server, or when asked for.
if os.environ.get("READTHEDOCS") == "True" or os.environ.get("SCSCORE_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "mudata": ("https://mudata.readthedocs.io/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

# -- HTML -----------------------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "path_to_docs": "docs/",
    "repository_branch": "main",
    "repository_url": repository_url,
    "use_repository_button": True,
}
