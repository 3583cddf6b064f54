"""The documentation as a site: `make docs`. Its pages are plain Markdown, which a forge shows as well."""

import os
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# Where links to files outside docs/ lead: a build of GitHub's links to its commit; else the site holds copies of them.
FORGE = (
    "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/{{kind}}/{GITHUB_SHA}".format(**os.environ)
    if "GITHUB_REPOSITORY" in os.environ
    else ""
)

project = "cvsa_jax"
author = copyright = "The cvsa_jax authors"
extensions = ["myst_nb"]
exclude_patterns = ["_build", "requirements.txt"]
html_theme = "furo"
html_title = "cvsa_jax"
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4  # links to headings are those of GitHub
nb_execution_mode = "off"  # the notebook is committed with its outputs, and a test executes it
highlight_language = "none"  # blocks of commands name no language


class LinksToFiles(SphinxTransform):
    """Relative links to files outside docs/, which are no pages of the site. Of one that leads nowhere Sphinx
    warns itself."""

    default_priority = 5  # before Sphinx resolves links

    def apply(self) -> None:
        for node in [
            *self.document.findall(addnodes.pending_xref),
            *self.document.findall(addnodes.download_reference),
        ]:
            if node.get("reftype") != "myst":
                continue
            target, _, anchor = node["reftarget"].partition("#")
            page = DOCS / self.env.docname
            path = (page.parent / target).resolve()
            if node.get("refdomain") == "doc":  # the target is a page's name, counted from docs/
                path = (DOCS / f"{target}.md").resolve()
            if not target or path.is_relative_to(DOCS) or not path.exists() or not path.is_relative_to(ROOT):
                continue
            if FORGE:
                kind = "tree" if path.is_dir() else "blob"
                uri = f"{FORGE.format(kind=kind)}/{path.relative_to(ROOT)}{f'#{anchor}' if anchor else ''}"
                node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=False))
            elif path.is_dir():
                node.replace_self(node.children)
            else:
                file = os.path.relpath(path, page.parent)
                copied = addnodes.download_reference("", "", *node.children, reftarget=file, refdoc=self.env.docname)
                node.replace_self(copied)


def setup(app) -> None:
    app.add_transform(LinksToFiles)
